"""One model of the sweep, measured in a process of its own: ``python -m benchmarks.measure SPEC OUT``.

What is known is written to OUT at every stage, so that a crash leaves at which stage it was.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fxlrp
from benchmarks.peers import PEERS
from benchmarks.processes import ROOT
from benchmarks.subjects import Subject, magnitude
from benchmarks.zoo import ZOOS

REASON = 600

Row = dict[str, Any]
Stage = Callable[[str], None]


def measure(subject: Subject, row: Row, stage: Stage) -> None:
    """Compile and explain ``subject``, and check the accounts; what is found goes into ``row``."""
    stage("the model")
    expected = subject.run()
    subject = _completed(subject, expected)

    stage("compile")
    began = time.perf_counter()
    explainer = fxlrp.compile(subject.model, start=subject.start, output=subject.output)
    row["compile_s"] = time.perf_counter() - began

    stage("explain")
    first, explanation = _timed(explainer, subject)
    capture = getattr(explainer, "capture", None)
    row["capture"] = capture if isinstance(capture, str) else "symbolic"
    if row["capture"] != "symbolic":
        # The capture may have waited for the first inputs, and then belongs to compiling.
        row["compile_s"] += max(0.0, first - _timed(explainer, subject)[0])
    kinds = Counter(join.kind for join in explainer.joins)
    row |= {f"joins_{kind}": kinds[kind] for kind in ("identity", "projection", "merge")}
    row["outputs"] = difference(explanation.output, expected, subject.output)
    row["finite"] = all(bool(part.isfinite().all()) for part in tree_leaves(explanation.relevance))
    del explanation

    stage("ledger")
    row |= accounts(explainer.ledger(*subject.inputs, **subject.keywords))
    row["status"] = "ok"


def measure_peer(subject: Subject, row: Row, stage: Stage) -> None:
    """How much of its start a peer's relevance amounts to at the input."""
    stage("the model")
    subject.run()
    stage("explain")
    (images,) = subject.inputs
    began = time.perf_counter()
    share = PEERS[row["peer"]](subject.model, images)
    row["seconds"] = time.perf_counter() - began
    ratios = share.relevance / share.start
    finite = bool(ratios.isfinite().all())
    row |= {
        "ratio": float(ratios[(ratios - 1).abs().argmax()]) if finite else "nan",
        "ratios": " ".join(f"{ratio:.6g}" for ratio in ratios.tolist()),
        "within_1_percent": finite and bool(((ratios - 1).abs() <= 0.01).all()),
        "finite": finite,
        "start": share.name,
        "how": share.how,
        "status": "ok",
    }


def accounts(ledger: fxlrp.ledger.Ledger) -> Row:
    """The errors of a ledger as shares of |start|, the worst of the batch."""
    start = ledger.start.abs()

    def share(amount: Tensor) -> float:
        return float((amount.abs() / start).max())

    # max() would pass over NaN, which is the worst.
    errors = [(share(row.error), row.node) for row in ledger]
    worst, node = max(errors, key=lambda pair: (pair[0] != pair[0], pair[0]), default=(0.0, ""))
    absorbed = {reason: share(amount) for reason, amount in ledger.absorbed.items() if bool(amount.ne(0).any())}
    return {
        "node_error": worst,
        "worst_node": node,
        "total_error": share(ledger.error),
        "absorbed": "; ".join(f"{reason} {amount:.3g}" for reason, amount in absorbed.items()),
    }


def difference(ours: Any, theirs: Any, output: Any) -> str:
    """``"bit-identical"``, or the largest difference between the outputs relative to the largest value."""
    mine = [leaf for leaf in tree_leaves(ours) if isinstance(leaf, Tensor)]
    wanted = [leaf for leaf in tree_leaves(theirs) if isinstance(leaf, Tensor)]
    if len(mine) != len(wanted):
        mine, wanted = [_picked(ours, output)], [_picked(theirs, output)]
    pairs = list(zip(mine, wanted, strict=True))
    if all(torch.equal(a, b) for a, b in pairs):
        return "bit-identical"
    return f"{max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs):.1e}"


def _completed(subject: Subject, expected: Any) -> Subject:
    """With a start that fits what the model returns."""
    if subject.output is None and isinstance(expected, tuple | list):
        subject = replace(subject, output=0)
    if subject.start is None:
        classes = _picked(expected, subject.output).dim() == 2
        subject = replace(subject, start="probability" if classes else magnitude)
    return subject


def _picked(structure: Any, output: Any) -> Tensor:
    picked: Tensor = structure if output is None or isinstance(structure, Tensor) else structure[output]
    return picked


def _timed(explainer: fxlrp.Explainer, subject: Subject) -> tuple[float, fxlrp.Explanation]:
    began = time.perf_counter()
    explanation = explainer(*subject.inputs, **subject.keywords)
    return time.perf_counter() - began, explanation


def one_line(error: BaseException) -> str:
    """An error as one line of bounded length, with files named from their package on."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = re.sub(r"[^\s'\"(]*/(?:site|dist)-packages/", "", text).replace(f"{ROOT}/", "")
    return text if len(text) <= REASON else text[:REASON] + " …"


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(measure)))
    parser.add_argument("spec", help="ZOO:NAME")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--memory", type=float, help="GiB that it may use")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    bounded(options.memory)
    zoo, _, name = options.spec.partition(":")
    row: Row = {"status": "failed"} | ({"peer": options.peer} if options.peer else {})

    def stage(what: str) -> None:
        row["stage"] = what
        write()

    def write() -> None:
        partial = options.out.with_suffix(".partial")
        partial.write_text(json.dumps(row))
        partial.replace(options.out)

    stage("build")
    try:
        subject = ZOOS[zoo].load(name).to(getattr(torch, options.dtype))
        row["parameters"] = sum(p.numel() for p in subject.model.parameters())
        (measure_peer if options.peer else measure)(subject, row, stage)
        row["stage"] = ""
    except Exception as error:
        row["reason"] = one_line(error)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    write()


def bounded(memory: float | None) -> None:
    """A process that asks for too much gets an error; if all together do, one of these is to end, not the sweep."""
    if memory:
        limit = int(memory * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
