"""What uses of fxlrp cost.

Many explanations in one call, lower precision, insertion and deletion, a token of a language model, onnxruntime.
"""

import copy
import json
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

import fxlrp
from benchmarks import models
from benchmarks.methods import FORMATS, YARDSTICK, Case, Method, Steps, Trial
from benchmarks.pages import grid, groups, in_order
from benchmarks.runs import Benchmark, every, listed
from fxlrp.extras import require

COUNT, LAYER = 8, "layer3"
"""How many explanations, K; and the module whose channels are conditions."""


def _explain_several(trial: Trial, together: bool) -> Steps:
    """K explanations in one call, or in K calls."""
    what, name = trial.variant.split(", ")
    model, images = (each.to(memory_format=FORMATS[name]) for each in (trial.model, trial.images))
    explainer = fxlrp.compile(model)
    apart, at_once = [{"target": target} for target in range(COUNT)], [{"target": range(COUNT)}]
    if what == "conditions":
        conditions = [{LAYER: [channel]} for channel in range(COUNT)]
        apart, at_once = ([{"target": 0, "conditions": some} for some in each] for each in (conditions, [conditions]))

    def explained(calls: list[dict[str, Any]]) -> list[Tensor]:
        return [explainer(images, **options).relevance for options in calls]

    if together:
        (found,), expected = explained(at_once), torch.stack(explained(apart), dim=1)
        scale = expected.abs().flatten(2).amax(2).clamp(min=1e-30)
        trial.facts["difference"] = float(((found - expected).abs().flatten(2).amax(2) / scale).max())
    yield
    yield partial(explained, at_once if together else apart)


SEVERAL = {
    name: Method(partial(_explain_several, together=name == "one call"), "fxlrp") for name in ("K calls", "one call")
}
TARGETS = Benchmark(
    "targets", "Time K targets, and K conditions, in one call and in K calls.", f"{__name__}:SEVERAL",
    every(["resnet50"], [1], [f"{what}, {name}" for name in FORMATS for what in ("targets", "conditions")]),
    rounds=7, threads=1, facts={"difference": ".1e"},
)  # fmt: skip


def _photographs(case: Case) -> tuple[nn.Module, Tensor]:
    """EfficientNet-Lite0 with its trained weights, and the demo's photographs."""
    from examples.demo import PHOTOS, photo_folder
    from examples.efficientnet_lite0 import load
    from fxlrp.images import read_image, to_input

    loaded, photos = load(), [read_image(photo_folder() / name) for name in PHOTOS]
    return loaded.model, torch.stack([to_input(photo, loaded.preprocess) for photo in photos])


def _explain_in(trial: Trial, dtype: torch.dtype = torch.float32, autocast: bool = False) -> Steps:
    exact = fxlrp.compile(copy.deepcopy(trial.model).double())(trial.images.double())
    model, images = trial.model.to(dtype), trial.images.to(dtype)

    def explained(explainer: fxlrp.Explainer) -> fxlrp.Explanation:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            return explainer(images, target=exact.target)

    trial.facts |= _errors(explained(fxlrp.compile(model)), exact)
    yield
    explainer = fxlrp.compile(model)
    yield lambda: explained(explainer)


def _errors(explanation: fxlrp.Explanation, exact: fxlrp.Explanation) -> dict[str, float]:
    """How far heatmaps are from the exact ones, the worst image: relative to the largest value, and in ranks."""
    from fxlrp.evaluation.agreement import rank_correlation

    # Maps are compared as shares of what entered, because a probability itself is rounded as well.
    maps, wanted = (fxlrp.heatmap(e.relevance).double() / e.start.double()[:, None, None] for e in (explanation, exact))
    lost = explanation.relevance.double().sum((1, 2, 3)) / explanation.start.double() - 1
    return {
        "difference": float(((maps - wanted).abs().amax((1, 2)) / wanted.abs().amax((1, 2))).max()),
        "rank_correlation": float(rank_correlation(maps, wanted).min()),
        "lost": float(lost.abs().max()),
    }


PRECISIONS = {
    name: Method(partial(_explain_in, **options), "fxlrp", channels_last=True, subject=_photographs)
    for name, options in {
        "float32": {}, "autocast to bfloat16": {"autocast": True}, "model in bfloat16": {"dtype": torch.bfloat16},
    }.items()
}  # fmt: skip
PRECISION = Benchmark(
    "precision", "Explain photographs in several precisions, and compare them with float64.", f"{__name__}:PRECISIONS",
    listed(Case("efficientnet_lite0", 4, 224)), facts={"difference": ".1e", "rank_correlation": ".4f", "lost": ".1e"},
)  # fmt: skip


def _in_unit_interval(case: Case) -> tuple[nn.Module, Tensor]:
    """A model, and an image in [0, 1]."""
    return models.build(case.model), torch.rand(1, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))


def _insert_and_delete(trial: Trial, metric: bool) -> Steps:
    from fxlrp.evaluation import PlateauWarning, insertion_deletion

    pixels, ties, levels = (word.split()[0] for word in trial.variant.split(", "))
    size, generator = trial.images.shape[-1], torch.Generator().manual_seed(0)
    heat = torch.randperm(size * size, generator=generator).reshape(1, size, size).float()
    heat = heat if levels == "all" else fxlrp.quantize_heat(heat, int(levels))

    def measure() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PlateauWarning)
            insertion_deletion(trial.model, trial.images, heat, 0, step=int(pixels), ties=ties, batch_size=32,
                               normalize=lambda x: (x - 0.45) / 0.22)  # fmt: skip

    counts: list[int] = []
    hook = trial.model.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    measure()
    hook.remove()
    trial.facts["passes"] = sum(counts)
    batches = [] if metric else [models.noise(3, size, size, batch=count) for count in counts]
    yield
    yield measure if metric else torch.inference_mode()(lambda: [trial.model(batch) for batch in batches])


METRIC = {
    "forward passes": Method(partial(_insert_and_delete, metric=False), subject=_in_unit_interval),
    "metric": Method(partial(_insert_and_delete, metric=True), "fxlrp", subject=_in_unit_interval),
}
EVALUATION = Benchmark(
    "evaluation", "Time insertion and deletion of one image, and the same number of forward passes.",
    f"{__name__}:METRIC", listed(*(
        Case(model, 1, size, f"{step} pixels, {variant} levels")
        for model, size, step in (("cifar_resnet56", 32, 16), ("resnet18", 224, 1000), ("resnet50", 224, 2000))
        for variant in ("strict, all", "plateau, all", "plateau, 8")
    )), rounds=5, threads=1, facts={"passes": ".0f"},
)  # fmt: skip

LAST = {"use_cache": False, "logits_to_keep": 1}


def _language_model(case: Case) -> tuple[nn.Module, Tensor]:
    """A model of the shape of Qwen2.5-0.5B with random weights, and the numbers of ``case.size`` tokens."""
    transformers = require("transformers", "text")
    shape = transformers.Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(shape).to(getattr(torch, case.variant))
    return model.eval().requires_grad_(False), torch.randint(0, 1000, (1, case.size))


def _autograd_to_embeddings(trial: Trial) -> Steps:
    def call() -> Tensor:
        leaf = trial.model.get_input_embeddings()(trial.images).detach().requires_grad_()
        return torch.autograd.grad(trial.model(inputs_embeds=leaf, **LAST).logits.amax(-1).sum(), leaf)[0]

    yield
    yield call


def _explain_token(trial: Trial, preset: str, **options: Any) -> Steps:
    yield
    explainer = fxlrp.compile(trial.model, preset, output=lambda out: out.logits[:, -1], **options)
    yield lambda: explainer(input_ids=trial.images, **LAST)


TOKEN = {
    YARDSTICK: Method(_autograd_to_embeddings, subject=_language_model),
    **{name: Method(partial(_explain_token, **options), "fxlrp", subject=_language_model) for name, options in {
        "evidence": {"preset": "evidence"}, "attnlrp": {"preset": "attnlrp"}, "conserving": {"preset": "conserving"},
        "evidence, low memory": {"preset": "evidence", "memory": "low"},
        "evidence, its precision": {"preset": "evidence", "precision": "model"},
        "attnlrp, its precision": {"preset": "attnlrp", "precision": "model"},
    }.items()},
}  # fmt: skip
LANGUAGE = Benchmark(
    "language", "Time the explanation of a token by a 0.5 B language model.", f"{__name__}:TOKEN",
    listed(*(Case("qwen2_05b", 1, tokens, dtype) for dtype in ("float32", "bfloat16") for tokens in (128, 512))),
    rounds=5, facts={"size": ".0f", "call_mb": ".0f", "held_mb": ".0f"},
)  # fmt: skip

BY_OPERATOR = ", by operator"


def _run_exported(trial: Trial, preset: str = "", by_operator: bool = False, rounds: int = 5) -> Steps:
    """The model, or its explanation by a preset; ``by_operator``: seconds by kind of operator instead of a call."""
    runtime = require("onnxruntime", "onnx")
    with TemporaryDirectory() as folder:
        yield
        path = Path(folder, "exported.onnx")
        if preset:
            fxlrp.compile(trial.model, preset).export_onnx(path, trial.images)
        else:
            axes = ({0: torch.export.Dim("batch", min=1)},)
            torch.onnx.export(trial.model, (trial.images,), path, dynamo=True, dynamic_shapes=axes,
                              external_data=False, verbose=False)  # fmt: skip
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sessions that wait take no core
        options.enable_profiling, options.profile_file_prefix = by_operator, f"{folder}/profile"
        session = partial(runtime.InferenceSession, str(path), options, providers=["CPUExecutionProvider"])
        given = [trial.images.numpy(), torch.full((len(trial.images),), -1).numpy()]
        feed = {value.name: array for value, array in zip(session().get_inputs(), given, strict=False)}

        def seconds_by_operator() -> Counter[str]:
            profiled, seconds = session(), Counter[str]()
            for _ in range(rounds):
                profiled.run(None, feed)
            for event in json.loads(Path(profiled.end_profiling()).read_text()):
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    seconds[event["args"]["op_name"]] += event["dur"] / rounds / 1e6
            return seconds

        yield seconds_by_operator if by_operator else partial(session().run, None, feed)


EXPORTED = {
    (preset or "model") + what: Method(partial(_run_exported, preset=preset, by_operator=bool(what)),
                                       "fxlrp" if preset else "onnxruntime", parts=bool(what))
    for what in ("", BY_OPERATOR) for preset in ("", "evidence", "conserving")
}  # fmt: skip


def by_operator(frame: pl.DataFrame) -> dict[str, Any]:
    """Milliseconds of a call by kind of operator, by case and method."""
    parts = frame.filter(pl.col("part") != "", pl.col("seconds") >= 1e-4)
    parts = in_order(parts, "method", EXPORTED).sort("seconds", descending=True, maintain_order=True)
    return {"operators": {
        key: grid(rows.rows(named=True), "part", "method", lambda row: f"{1000 * row['seconds']:.1f}", "operator")
        for key, rows in groups(parts, "model", "batch").items()
    }}  # fmt: skip


ONNX = Benchmark(
    "onnx", "Time exported explanations in onnxruntime, beside their models.", f"{__name__}:EXPORTED",
    every(["efficientnet_lite0", "resnet50", "vit_b_16"], (1, 8)), by_operator,
)  # fmt: skip
