"""The worker that compiles and explains one model, and checks what became of the relevance."""

import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fxlrp
from benchmarks.peers import PEERS
from benchmarks.workers import Row, one_line
from benchmarks.zoo import ZOOS, Subject, magnitude


class Tasks:
    """What a worker can be asked for: the row of a model, or of a peer on it.

    ``progress`` is called with the row as it stands at every stage, so that a crash leaves at which stage it was.
    """

    def __init__(self, job: Row, progress: Callable[[Row], None]) -> None:
        self.job, self.progress, self.row = job, progress, {"status": "failed"}

    def measure(self) -> Row:
        """The row of the model, measured or failed."""
        job, row = self.job, self.row
        try:
            self._stage("build")
            subject = ZOOS[job["zoo"]].load(job["name"]).to(getattr(torch, job["dtype"]))
            row["parameters"] = sum(p.numel() for p in subject.model.parameters())
            self._stage("the model")
            output = subject.run()
            if job["peer"]:
                self._measure_peer(subject)
            else:
                self._measure_fxlrp(with_start(subject, output), output)
            row |= {"status": "ok", "stage": ""}
        except Exception as error:
            row["reason"] = one_line(error)
        return {**row, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}

    def _stage(self, name: str) -> None:
        self.row["stage"] = name
        self.progress(self.row)

    def _measure_fxlrp(self, subject: Subject, output: Any) -> None:
        row = self.row
        self._stage("compile")
        began = time.perf_counter()
        explainer = fxlrp.compile(subject.model, start=subject.start, output=subject.output)
        row["compile_s"] = time.perf_counter() - began

        self._stage("explain")
        first, explanation = _timed(explainer, subject)
        row["capture"] = explainer.capture
        if row["capture"] != "symbolic":
            # The capture may have waited for the first inputs, and then belongs to compiling.
            row["compile_s"] += max(0.0, first - _timed(explainer, subject)[0])
        kinds = Counter(join.kind for join in explainer.joins)
        row |= {f"joins_{kind}": kinds[kind] for kind in ("identity", "projection", "merge")}
        row["outputs"] = difference(explanation.output, output, subject.output)
        row["finite"] = all(bool(part.isfinite().all()) for part in tree_leaves(explanation.relevance))
        del explanation

        self._stage("ledger")
        row |= accounts(explainer.ledger(*subject.inputs, **subject.keywords))

    def _measure_peer(self, subject: Subject) -> None:
        """How much of its start a peer's relevance amounts to at the input."""
        self._stage("explain")
        peer = PEERS[self.job["peer"]]
        began = time.perf_counter()
        shares, how = peer.shares(subject.model, *subject.inputs)
        finite = bool(shares.isfinite().all())
        self.row |= {
            "seconds": time.perf_counter() - began,
            "ratio": float(shares[(shares - 1).abs().argmax()]) if finite else "nan",
            "ratios": " ".join(f"{share:.6g}" for share in shares.tolist()),
            "within_1_percent": finite and bool(((shares - 1).abs() <= 0.01).all()),
            "finite": finite, "start": peer.start, "how": how,
        }  # fmt: skip


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
