"""The worker that compiles and explains one model, and checks what became of the relevance."""

import resource
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fxlrp
from benchmarks.peers import PEERS
from benchmarks.workers import Row
from benchmarks.zoo import ZOOS, Subject, magnitude

STAGES = {"build": "build", "the model": "run", "compile": "compile", "explain": "explain", "ledger": "ledger"}
"""What is asked for in turn, by the name of the stage; of a peer what ``PEER_STAGES`` says."""
PEER_STAGES = {"build": "build", "the model": "run", "explain": "explain_by_peer"}


class Tasks:
    """What a worker can be asked to do: a stage at a time, each of which returns columns of the row."""

    def __init__(self, job: Row) -> None:
        self.job = job

    def build(self) -> Row:
        job = self.job
        self.subject = ZOOS[job["zoo"]].load(job["name"]).to(getattr(torch, job["dtype"]))
        return {"parameters": sum(p.numel() for p in self.subject.model.parameters())}

    def run(self) -> Row:
        self.output = self.subject.run()
        self.subject = with_start(self.subject, self.output)
        return {}

    def compile(self) -> Row:
        began = time.perf_counter()
        self.explainer = fxlrp.compile(self.subject.model, start=self.subject.start, output=self.subject.output)
        self.compile_s = time.perf_counter() - began
        return {"compile_s": self.compile_s}

    def explain(self) -> Row:
        explainer, subject = self.explainer, self.subject
        first, explanation = _timed(explainer, subject)
        if explainer.capture != "symbolic":
            # The capture may have waited for the first inputs, and then belongs to compiling.
            self.compile_s += max(0.0, first - _timed(explainer, subject)[0])
        kinds = Counter(join.kind for join in explainer.joins)
        return {
            "capture": explainer.capture, "compile_s": self.compile_s,
            **{f"joins_{kind}": kinds[kind] for kind in ("identity", "projection", "merge")},
            "outputs": difference(explanation.output, self.output, subject.output),
            "finite": all(bool(part.isfinite().all()) for part in tree_leaves(explanation.relevance)),
        }  # fmt: skip

    def ledger(self) -> Row:
        return accounts(self.explainer.ledger(*self.subject.inputs, **self.subject.keywords))

    def explain_by_peer(self) -> Row:
        """How much of its start a peer's relevance amounts to at the input."""
        peer, began = PEERS[self.job["peer"]], time.perf_counter()
        shares, how = peer.shares(self.subject.model, *self.subject.inputs)
        finite = bool(shares.isfinite().all())
        return {
            "seconds": time.perf_counter() - began,
            "ratio": float(shares[(shares - 1).abs().argmax()]) if finite else "nan",
            "ratios": " ".join(f"{share:.6g}" for share in shares.tolist()),
            "within_1_percent": finite and bool(((shares - 1).abs() <= 0.01).all()),
            "finite": finite, "start": peer.start, "how": how,
        }  # fmt: skip

    def peak(self) -> Row:
        return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def accounts(ledger: fxlrp.Ledger) -> Row:
    """The errors of a ledger as shares of |start|, the worst of the batch."""

    def share(amount: Tensor) -> float:
        return float((amount.abs() / ledger.start.abs()).max())

    # max() would pass over NaN, which is the worst.
    errors = [(share(row.error), row.node) for row in ledger]
    worst, node = max(errors, key=lambda pair: (pair[0] != pair[0], pair[0]), default=(0.0, ""))
    absorbed = (f"{reason} {share(amount):.3g}" for reason, amount in ledger.absorbed.items() if amount.any())
    total = share(ledger.error)
    return {"node_error": worst, "worst_node": node, "total_error": total, "absorbed": "; ".join(absorbed)}


def difference(ours: Any, theirs: Any, output: Any) -> str:
    """``"bit-identical"``, or the largest difference between the outputs relative to the largest value."""
    mine, wanted = ([leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in (ours, theirs))
    if len(mine) != len(wanted):
        mine, wanted = [_explained(ours, output)], [_explained(theirs, output)]
    pairs = list(zip(mine, wanted, strict=True))
    if all(torch.equal(a, b) for a, b in pairs):
        return "bit-identical"
    return f"{max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs):.1e}"


def with_start(subject: Subject, output: Any) -> Subject:
    """The subject with a start that fits what the model returns."""
    if subject.output is None and isinstance(output, tuple | list):
        subject = replace(subject, output=0)
    if subject.start is None:
        classes = _explained(output, subject.output).dim() == 2
        subject = replace(subject, start="probability" if classes else magnitude)
    return subject


def _explained(structure: Any, output: Any) -> Tensor:
    return structure if output is None or isinstance(structure, Tensor) else structure[output]


def _timed(explainer: fxlrp.Explainer, subject: Subject) -> tuple[float, fxlrp.Explanation]:
    began = time.perf_counter()
    explanation = explainer(*subject.inputs, **subject.keywords)
    return time.perf_counter() - began, explanation
