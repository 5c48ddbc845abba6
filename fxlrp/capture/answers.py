"""What forward() asks of the values of integers: how many groups there are, whether a mask hides anything.

``int(groups.max())``, ``if mask.any()``, ``lengths.tolist()``: Python goes on with the answer, and a graph cannot. The
answers for the examples are read once, and the graph is that of the way through forward() that they lead to. The
questions stay with it: at each call they are asked again, and where an answer is another one, so is the graph.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

aten = torch.ops.aten

_QUESTIONS = frozenset(
    {Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item, Tensor.tolist}
)
_ROWS = frozenset({Tensor.unbind, torch.unbind})
"""What Python iterates over; where it is not known how many rows there are, they are an answer too."""
_NOT_ASKING = ("/torch/", "/fxlrp/capture/")
_PLACES = frozenset({Tensor.nonzero, torch.nonzero, Tensor.argwhere, torch.argwhere, torch.where})
"""What finds where a mask is set."""


class DifferentQuestionsError(RuntimeError):
    """What is asked while the model is read is not what was asked before."""


class Noted(NamedTuple):
    """A question with its answer.

    Attributes:
        kind: the function that asked, and the line of code that called it.
        answer: the answer.
    """

    kind: tuple[str, str, int]
    answer: Any


class Answers(TorchFunctionMode):
    """Within, questions about integers are noted with their answers, or answered as they were before.

    Some code asks less where it is read than where it is run, as it does not look at values then: what is not asked
    again is passed over.

    Args:
        known: what was noted; ``None``: the model is run, and it is noted now.
        places: whether it is asked too where masks are set, so that it is known how much they pick.

    Attributes:
        noted: while the model is run, the questions with their answers, in order.
        given: while they are known, the answers that were given, in order.
        asked: while they are known, the tensors that are asked about, in order.
    """

    def __init__(self, known: Sequence[Noted] | None = None, *, places: bool = False) -> None:
        super().__init__()
        self.known = known
        self.places = places
        self.noted: list[Noted] = []
        self.given: list[Any] = []
        self.asked: list[Tensor] = []
        self._next = 0
        self._list = FakeTensor.tolist

    def __enter__(self) -> Answers:
        FakeTensor.tolist = _asked_as_one(self._list)  # type: ignore[method-assign,assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        FakeTensor.tolist = self._list  # type: ignore[method-assign]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.places and func is Tensor.__getitem__:
            return func(args[0], self._without_masks(args[1]))
        if self.places and func in _PLACES and isinstance(args[0], Tensor) and len(args) == 1 and _counts(args[0]):
            return self._places(func, args[0], lambda: func(*args, **(kwargs or {})))
        asks = func in _QUESTIONS or func in _ROWS
        if not (asks and args and isinstance(args[0], Tensor) and _counts(args[0])):
            return func(*args, **(kwargs or {}))
        kind = _kind(func)
        if self.known is None:
            answer = func(*args, **(kwargs or {}))
            self.noted.append(Noted(kind, [row.clone() for row in answer] if func in _ROWS else answer))
            return answer
        answer = self._known(kind)
        if func in _ROWS and isinstance(args[0].shape[0], int):
            return func(*args, **(kwargs or {}))  # the rows are in the graph
        self.asked.append(args[0])
        self.given.append(answer)
        return answer

    def _places(self, func: Callable[..., Any], asked: Tensor, find: Callable[[], Any]) -> Any:
        """Where ``asked`` is set, as it is found now, or as it was; its values are the answer."""
        kind = _kind(func)
        if self.known is None:
            found = pytree.tree_map_only(Tensor, torch.clone, find())
            self.noted.append(Noted(kind, (asked.clone(), found)))
            return found
        value, found = self._known(kind)
        self.asked.append(asked)
        self.given.append(value)
        return found

    def _known(self, kind: tuple[str, str, int]) -> Any:
        """The answer to the next question of this kind."""
        assert self.known is not None
        for place in range(self._next, len(self.known)):
            if self.known[place].kind == kind:
                self._next = place + 1
                return self.known[place].answer
        raise DifferentQuestionsError("forward() asks more when it is read than when it is run")

    def _without_masks(self, index: Any) -> Any:
        """An index in which the places of masks stand for the masks."""
        found: list[Any] = []
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, Tensor) and part.dtype == torch.bool and part.dim():
                found.extend(self._places(Tensor.__getitem__, part, partial(part.nonzero, as_tuple=True)))
            else:
                found.append(part)
        return tuple(found) if isinstance(index, tuple) or len(found) > 1 else found[0]


def _asked_as_one(by_item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``FakeTensor.tolist``, which asks for one item after the other, as one question; in other threads, itself."""
    thread = threading.get_ident()
    return lambda value: (Tensor.tolist if threading.get_ident() == thread else by_item)(value)


def _kind(func: Callable[..., Any]) -> tuple[str, str, int]:
    """What asks, by the innermost line of code that is neither torch's nor this package's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in _NOT_ASKING):
        frame = frame.f_back
    return func.__name__, frame.f_code.co_filename, frame.f_lineno


def _counts(value: Tensor) -> bool:
    return not value.is_floating_point() and not value.is_complex()


class Questions:
    """The part of a graph that leads to what was asked about, and the answers for which the graph was read.

    Args:
        graph: a captured graph whose output is a list.
        asked: its nodes that were asked about.
        answers: the answer of each: a number, numbers in lists, rows, or its values.

    Attributes:
        of_signal: whether a number is asked for that values of the model decide, such as the sign of a sum: a branch
            that moves with what is explained. Several whole numbers are counts of what was picked, and held constant;
            so is whether anything was, of the tokens that a router sends to an expert.
    """

    def __init__(self, graph: fx.Graph, asked: Sequence[fx.Node], answers: Sequence[Any]) -> None:
        self.graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        self.graph.graph_copy(graph, copies)
        self.graph.output([copies[node] for node in asked])
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        self.answers = list(answers)
        self.of_signal = self._of_signal()

    def _of_signal(self) -> bool:
        (asked,) = next(node for node in self.graph.nodes if node.op == "output").args
        answered = zip(asked, self.answers, strict=True)
        numbers = [node for node, answer in answered if not (_are_tensors(answer) or _are_counts(answer))]
        return any(_is_of_signal(node) and not _asks_whether_any(node) for node in numbers)

    def alike(self, tensors: Sequence[Tensor], tensor: Callable[[str], Tensor]) -> bool:
        """Whether the answers for these inputs are those for which the graph was read.

        Args:
            tensors: the inputs.
            tensor: gives a tensor of the model by its name.
        """
        like = next((x for x in tensors if x.is_floating_point()), None)
        values = _Interpreter(self.graph, tensor, like)
        try:
            with torch.no_grad():
                found = values.run(*tensors)
        except (RuntimeError, IndexError):  # it holds for other sizes
            return False
        return all(map(_same, found, self.answers))


class _Interpreter(fx.Interpreter):
    def __init__(self, graph: fx.Graph, tensor: Callable[[str], Tensor], like: Tensor | None) -> None:
        super().__init__(fx.GraphModule({}, fx.Graph()), graph=graph)
        self.extra_traceback = False
        self._tensor, self._like = tensor, like

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value, like = self._tensor(str(target)), self._like
        if like is None:
            return value
        return value.to(like) if value.is_floating_point() else value.to(like.device)


def _is_of_signal(asked: fx.Node) -> bool:
    """Whether a value is computed from a floating point input, or from what is looked up for integers."""
    waiting, seen, inputs, tables = [asked], set(), False, False
    while waiting:
        node = waiting.pop()
        if node in seen or str(node.target).startswith("aten.sym_"):
            continue
        seen.add(node)
        value = node.meta.get("val")
        floating = isinstance(value, Tensor) and not _counts(value)
        one = isinstance(value, Tensor) and value.dim() == 0
        if node.op == "placeholder" and floating:
            return True
        inputs = inputs or node.op == "placeholder"
        tables = tables or (node.op == "get_attr" and floating and not one)
        waiting.extend(node.all_input_nodes)
    return inputs and tables


def _asks_whether_any(asked: fx.Node) -> bool:
    """Whether it is asked if any of some numbers that were picked, such as those of experts, is a certain one."""
    if asked.target not in (aten.any.default, aten.any.dim, aten.any.dims):
        return False
    mask: Any = asked
    while isinstance(mask, fx.Node) and mask.target is not aten.eq.Scalar:
        mask = mask.args[0] if mask.args else None
    value = mask.args[0].meta.get("val") if isinstance(mask, fx.Node) else None  # type: ignore[union-attr]
    return isinstance(value, Tensor) and _counts(value)


def _are_tensors(answer: Any) -> bool:
    return isinstance(answer, Tensor) or (isinstance(answer, list) and bool(answer) and isinstance(answer[0], Tensor))


def _are_counts(answer: Any) -> bool:
    """Whether an answer is a list of whole numbers, such as how many tokens each expert gets; no branch of its own."""
    return isinstance(answer, list) and len(answer) > 1 and all(type(number) is int for number in answer)


def _same(value: Tensor, answer: Any) -> bool:
    if isinstance(answer, Tensor):
        return torch.equal(value, answer)
    if _are_tensors(answer):
        return len(value) == len(answer) and all(map(torch.equal, value, answer))
    if isinstance(answer, list):
        return bool(value.tolist() == answer)
    return value.numel() == 1 and bool(value == answer)
