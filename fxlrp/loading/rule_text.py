"""Rules written as text, as the command line takes them: ``layer4.*=Epsilon(1e-6)``."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from typing import Any

from fxlrp import rules
from fxlrp.common.errors import RuleError
from fxlrp.rules.rule import Rule

RULES: dict[str, type[Rule]] = {
    name: value
    for name in rules.__all__
    if isinstance(value := getattr(rules, name), type) and issubclass(value, Rule) and not inspect.isabstract(value)
}
"""The rules by name, without the abstract base classes."""


def read_rules(texts: Sequence[str]) -> dict[str, Rule]:
    """Read rules, each with the pattern of the modules that it is for.

    Args:
        texts: each ``PATTERN=RULE``; see :func:`read_rule`.

    Raises:
        RuleError: a text is not ``PATTERN=RULE``, or a pattern is given twice.
    """
    by_pattern: dict[str, Rule] = {}
    for text in texts:
        pattern, equals, rule = (part.strip() for part in text.partition("="))
        if not (pattern and equals and rule):
            raise RuleError(f"--rule {text}: write PATTERN=RULE, such as 'layer4.*=Epsilon(1e-6)'")
        if pattern in by_pattern:
            raise RuleError(f"--rule {text}: there is a rule for {pattern} already, {by_pattern[pattern]}")
        try:
            by_pattern[pattern] = read_rule(rule)
        except RuleError as error:
            raise RuleError(f"--rule {text}: {error}") from error
    return by_pattern


def read_rule(text: str) -> Rule:
    """The rule that a text names, such as ``ZPlus``, ``epsilon(1e-6)`` or ``Bilinear(Epsilon(epsilon=1e-6))``.

    Nothing is evaluated: names are those of :data:`RULES`, in upper or lower case; arguments are literals or rules.

    Raises:
        RuleError: the text is no rule; the message shows the part that is not understood.
    """
    text = re.sub(r"\bpass\b", "Pass", text)  # in lower case it is a keyword of Python
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise RuleError(f"{text!r} is no rule with arguments, such as 'Epsilon(1e-6)'") from error
    return _rule(tree, text)


def _rule(tree: ast.expr, text: str) -> Rule:
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    piece = ast.get_source_segment(text, call.func) or text
    by_name = {name.casefold(): rule for name, rule in RULES.items()}
    if not isinstance(call.func, ast.Name) or call.func.id.casefold() not in by_name:
        raise RuleError(f"{piece!r} is no rule: choose one of {', '.join(RULES)}")
    rule = by_name[call.func.id.casefold()]
    arguments = [_argument(value, text) for value in call.args]
    named: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise RuleError(f"{ast.get_source_segment(text, keyword)!r} is neither a literal nor a rule")
        named[keyword.arg] = _argument(keyword.value, text)
    whole = ast.get_source_segment(text, tree)
    signature = inspect.signature(rule).replace(return_annotation=inspect.Signature.empty)
    try:
        for name, value in signature.bind(*arguments, **named).arguments.items():
            _check(name, str(signature.parameters[name].annotation), value)
        return rule(*arguments, **named)
    except RuleError as error:
        raise RuleError(f"{whole!r}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise RuleError(f"{whole!r} does not fit {rule.__name__}{signature}: {error}") from error


def _check(name: str, wanted: str, value: Any) -> None:
    # A number in place of a rule, or a rule in place of a number, would otherwise fail only at the first explanation.
    if value is not None and ("Rule" in wanted) != isinstance(value, Rule):
        raise TypeError(f"{name} is {value!r}")


def _argument(tree: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError, MemoryError, RecursionError):
        if isinstance(tree, ast.Call | ast.Name):
            return _rule(tree, text)
        piece = ast.get_source_segment(text, tree)
        raise RuleError(f"{piece!r} is neither a literal nor a rule") from None
