"""Which models compile, how well they conserve, and what the peers keep: one row per model, each in its own process."""

import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from fnmatch import fnmatch
from itertools import count, product
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import torch
import typer
from psutil import virtual_memory
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fxlrp
from benchmarks.methods import PEERS
from benchmarks.models import FIELD, ZOOS, load, magnitude, smallest_classifiers
from benchmarks.pages import CsvTable, groups, in_order, page
from benchmarks.runs import checked, console
from benchmarks.workers import CORES, HERE, Failure, Row, Worker, commit, now, versions

PACKAGES = ("fxlrp", "torch", "torchvision", "timm", "transformers", "autolrp", "zennit", "captum")
KEY = ("zoo", "name", "dtype", "peer")
STAGES = {"build": "build", "the model": "run", "compile": "compile", "explain": "explain", "ledger": "ledger"}
"""What is asked for in turn, by the name of the stage; of a peer what ``PEER_STAGES`` says."""
PEER_STAGES = {"build": "build", "the model": "run", "explain": "explain_by_peer"}
LIMITS = {"float32": 1e-4, "float64": 1e-10}
COLUMNS = dict.fromkeys(("node_error", "total_error", "compile_s", "ratio"), pl.Float64) | dict.fromkeys((
    "group", "status", "stage", "reason", "capture", "joins_identity", "joins_projection", "joins_merge", "worst_node",
    "absorbed", "outputs", "finite", "within_1_percent", "start", "how", "made", "date",
), pl.String)  # fmt: skip


def main(
    zoo: Annotated[list[str] | None, typer.Option(help=f"Only this zoo; may be repeated: {', '.join(ZOOS)}.")] = None,
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Only models whose name fits, such as 'resnet*'.")] = "*",
    float64: Annotated[bool, typer.Option("--float64", help="In float64 as well.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="The peers too, on torchvision's families.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what has a row.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure again what failed.")] = False,
    page_only: Annotated[bool, typer.Option("--page-only", help="Measure nothing, make the page anew.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once; they share the cores.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one stage of a model.")] = 1200,
    memory: Annotated[float, typer.Option(help="GiB for one model.")] = round(0.9 * virtual_memory().total / 2**30),
    out: Annotated[Path, typer.Option(help="The folder of coverage.md and its CSV file.")] = HERE,
) -> None:
    """Sweep model zoos: what compiles, what conserves, and what the peers keep. A run goes on where one was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    table = CsvTable(out / "coverage.csv", KEY)
    zoos = checked(zoo or ZOOS, ZOOS.__contains__, "zoo")
    keys = [key for zoo in zoos for key in product([zoo], ZOOS[zoo], LIMITS if float64 else ["float32"], [""])]
    if peers and "torchvision" in zoos:
        keys += product(["torchvision"], smallest_classifiers(), ["float32"], [name for name in PEERS if name != "lxt"])
    wanted = [] if page_only else [key for key in keys if fnmatch(key[1], only)]
    due = {None, "failed"} if retry_failed else {None}  # by status; what has no row has none
    todo = [dict(zip(KEY, key, strict=True)) | {"group": ZOOS[key[0]][key[1]]["group"]}
            for key in wanted if fresh or table.rows.get(key, {}).get("status") in due]  # fmt: skip
    threads, numbers = max(1, CORES // jobs), count(1)
    console.print(f"{len(wanted)} rows asked for, {len(todo)} to measure")
    made = f"{versions(*PACKAGES)}; {commit()}; {threads} thread{'s' if threads > 1 else ''}"

    def enter(row: Row) -> None:
        table.add([row | {"made": made, "date": now()}])
        what = f"{row['name']} ({row['peer'] or row['dtype']})"
        console.print(f"{next(numbers)} of {len(todo)}: {what}: {_told(row)}", markup=False)

    try:
        sweep(todo, jobs, lambda row: Worker("benchmarks.coverage", row | {"memory": memory}, timeout, threads), enter)
    finally:  # also where Ctrl-C comes first
        (out / "coverage.md").write_text(page("coverage", **context(table)))
        console.print(f"written: {out / 'coverage.md'}")


def sweep(todo: Sequence[Row], jobs: int, start: Callable[[Row], Worker], enter: Callable[[Row], None]) -> None:
    """Measure the rows, ``jobs`` at a time; each is entered as soon as it is there."""
    running: set[Worker] = set()

    def measured(row: Row) -> Row:
        running.add(worker := start(row))
        found = {"status": "ok", "stage": ""}
        try:
            for stage, do in (PEER_STAGES if row.get("peer") else STAGES).items():
                found |= worker.ask(stage, do) | worker.ask(stage, "peak")
        except Failure as failure:
            found |= failure.row
        finally:
            running.remove(worker)
            worker.close()
        return row | found

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(measured, row) for row in todo]
        try:
            for future in as_completed(futures):
                enter(future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # a thread may just be starting its worker
                for worker in list(running):
                    worker.kill()
                time.sleep(0.1)


def _told(row: Row) -> str:
    if row["status"] != "ok":
        return f"failed at {row['stage']}: {row['reason'][:160]}"
    if row["peer"]:
        return f"Σ relevance / start {row['ratio']:.4g}"
    return f"worst node {row['node_error']:.4g}, total {row['total_error']:.4g}, outputs {row['outputs']}"


class Tasks:
    """What the process of a model can be asked to do: a stage at a time, each of which returns columns of the row."""

    def __init__(self, job: Row) -> None:
        self.job = job

    def build(self) -> Row:
        entry, dtype = ZOOS[self.job["zoo"]][self.job["name"]], getattr(torch, self.job["dtype"])
        self.model, self.inputs, self.keywords, self.asked = load(entry, dtype)
        return {"parameters": sum(p.numel() for p in self.model.parameters())}

    def run(self) -> Row:
        with torch.no_grad():
            self.output = self._given_to(self.model)
        asked = self.asked
        if asked["output"] is None and not isinstance(self.output, Tensor):
            asked["output"] = 0 if isinstance(self.output, tuple | list) else next(iter(self.output))
        if asked["start"] is None:
            asked["start"] = "probability" if _explained(self.output, asked["output"]).dim() == 2 else magnitude
        return {}

    def compile(self) -> Row:
        if self.job["zoo"] in FIELD:
            with suppress(fxlrp.errors.FxlrpError):  # where the model alone is not explained, fxlrp says so itself
                self._given_to(fxlrp.compile(self.model))
                self.asked.clear()
        began = time.perf_counter()
        self.explainer = fxlrp.compile(self.model, **self.asked)
        self.compile_s = time.perf_counter() - began
        given = [f"{name} {getattr(value, '__name__', value)}" for name, value in self.asked.items()
                 if (name, value) != ("output", None)]  # fmt: skip
        return {"compile_s": self.compile_s, "how": ", ".join(given) or "alone"}

    def explain(self) -> Row:
        explainer, began = self.explainer, time.perf_counter()
        explanation, ended = self._given_to(explainer), time.perf_counter()
        if explainer.capture != "symbolic":
            # The capture may have waited for the first inputs, and then belongs to compiling: a second call tells.
            self._given_to(explainer)
            self.compile_s += max(0.0, (ended - began) - (time.perf_counter() - ended))
        return {
            "capture": explainer.capture, "compile_s": self.compile_s,
            **{f"joins_{kind}": sum(join.kind == kind for join in explainer.joins)
               for kind in ("identity", "projection", "merge")},
            "outputs": difference(explanation.output, self.output, self.asked.get("output")),
            "finite": all(bool(part.isfinite().all()) for part in tree_leaves(explanation.relevance)),
        }  # fmt: skip

    def ledger(self) -> Row:
        """The errors of the ledger as shares of |start|, the worst of the batch."""
        ledger = self._given_to(self.explainer.ledger)

        def share(amount: Tensor) -> float:
            return float((amount.abs() / ledger.start.abs()).max())

        # max() would pass over NaN, which is the worst.
        errors = [(share(row.error), row.node) for row in ledger]
        worst, node = max(errors, key=lambda pair: (pair[0] != pair[0], pair[0]), default=(0.0, ""))
        absorbed = (f"{reason} {share(amount):.3g}" for reason, amount in ledger.absorbed.items() if amount.any())
        total = share(ledger.error)
        return {"node_error": worst, "worst_node": node, "total_error": total, "absorbed": "; ".join(absorbed)}

    def explain_by_peer(self) -> Row:
        """How much of its start a peer's relevance amounts to at the input."""
        peer, began = PEERS[self.job["peer"]], time.perf_counter()
        shares, how = peer.shares(self.model, *self.inputs)
        finite = bool(shares.isfinite().all())
        return {
            "seconds": time.perf_counter() - began,
            "ratio": float(shares[(shares - 1).abs().argmax()]) if finite else float("nan"),
            "ratios": " ".join(f"{share:.6g}" for share in shares.tolist()),
            "within_1_percent": finite and bool(((shares - 1).abs() <= 0.01).all()),
            "finite": finite, "start": peer.start, "how": how,
        }  # fmt: skip

    def peak(self) -> Row:
        return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}

    def _given_to(self, function: Callable[..., Any]) -> Any:
        return function(*self.inputs, **self.keywords)


def difference(ours: Any, theirs: Any, output: Any) -> str:
    """``"bit-identical"``, or the largest difference between the outputs relative to the largest value."""
    mine, wanted = ([leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in (ours, theirs))
    if len(mine) != len(wanted):
        mine, wanted = [_explained(ours, output)], [_explained(theirs, output)]
    pairs = list(zip(mine, wanted, strict=True))
    if all(torch.equal(a, b) for a, b in pairs):
        return "bit-identical"
    return f"{max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs):.1e}"


def _explained(structure: Any, output: Any) -> Tensor:
    if output is None or isinstance(structure, Tensor):
        return structure
    return output(structure) if callable(output) else structure[output]


def context(table: CsvTable) -> dict[str, Any]:
    """What the page may name; models come as the zoos have them, not as processes happened to end."""
    ok, finite, is_model = pl.col("status") == "ok", pl.col("finite") == "True", pl.col("peer") == ""
    typed = pl.col("reason").str.extract(r"^(\w+)").is_in(dir(fxlrp.errors))
    places = pl.DataFrame([(zoo, name) for zoo in ZOOS for name in ZOOS[zoo]], ["zoo", "name"], orient="row")
    rows = in_order(table.frame(COLUMNS), "peer", PEERS).join(places.with_row_index("place"), on=KEY[:2], how="left")
    rows = rows.sort(~is_model, "place", "dtype", nulls_last=True, maintain_order=True)
    limit = pl.col("dtype").replace_strict(LIMITS, return_dtype=pl.Float64)
    conserves = (ok & finite & (pl.col("total_error") <= limit)).fill_null(False)
    frame, others = rows.filter(is_model), rows.filter(~is_model)
    return {
        "dates": (rows["date"].min(), rows["date"].max()),
        "made": [(how, len(some)) for how, some in groups(rows, "made").items()],
        # One row per zoo and precision: how many of the models that run do what, and the worst errors.
        "summary": frame.group_by("zoo", "dtype", limit=limit, maintain_order=True).agg(
            models=pl.len(),
            run=ok.sum(),
            alone=(ok & (pl.col("how") == "alone")).sum(),
            refused=(~ok & typed).sum(),
            identical=(ok & (pl.col("outputs") == "bit-identical")).sum(),
            conserve=(ok & (pl.col("total_error") <= limit)).sum(),
            at_every_node=(ok & (pl.col("node_error") <= limit)).sum(),
            # max() would pass over NaN, which is the worst.
            worst_total=pl.col("total_error").filter(ok).nan_max(),
            worst_node=pl.col("node_error").filter(ok).nan_max(),
            constants=(ok & pl.col("absorbed").str.contains("^(constant [^;]*(; )?)*$")).sum(),
            finite=(ok & finite).sum(),
        ).rows(named=True),
        "field": [*FIELD],
        "failed": frame.filter(~conserves).sort(ok, maintain_order=True).rows(named=True),
        "zoos": [(zoo, [dtype for dtype in LIMITS if dtype in some["dtype"]], [
            {row["dtype"]: row for row in rows.iter_rows(named=True)} for rows in groups(some, "name").values()
        ]) for zoo, some in groups(frame, "zoo").items()],
        "peers": others.rows(named=True),
        "within": ["within 1 %", *(f"{(some['within_1_percent'] == 'True').sum()} of {len(some)}"
                                   for some in groups(others, "peer").values())],
        "settings": groups(others.filter(ok), "peer", "start", "how"),
    }  # fmt: skip
