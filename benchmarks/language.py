"""What an explanation of a language model costs: one token of a 0.5 B model, beside a pass forward and back."""

from functools import partial

import torch
from torch import Tensor, nn

import fxlrp
from benchmarks.methods import YARDSTICK, Case, Method, Steps, Trial
from benchmarks.runs import Benchmark, listed
from fxlrp.extras import require

SHAPE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
"""Of Qwen2.5-0.5B."""
LAST = {"use_cache": False, "logits_to_keep": 1}
CASES = [Case("qwen2_05b", 1, tokens, dtype) for dtype in ("float32", "bfloat16") for tokens in (128, 512)]


def _subject(case: Case) -> tuple[nn.Module, Tensor]:
    """The model with random weights, and the numbers of ``case.size`` tokens, (1, tokens)."""
    transformers = require("transformers", "text")
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE)).to(getattr(torch, case.variant)).eval()
    return model.requires_grad_(False), torch.randint(0, 1000, (1, case.size))


def _autograd(trial: Trial) -> Steps:
    def call() -> Tensor:
        leaf = trial.model.get_input_embeddings()(trial.images).detach().requires_grad_()
        return torch.autograd.grad(trial.model(inputs_embeds=leaf, **LAST).logits.amax(-1).sum(), leaf)[0]

    yield
    yield call


def _explained(trial: Trial, preset: str, memory: str | None = None) -> Steps:
    yield
    explainer = fxlrp.compile(trial.model, preset, output=lambda out: out.logits[:, -1], memory=memory)
    yield lambda: explainer(input_ids=trial.images, **LAST)


METHODS = {
    YARDSTICK: Method(_autograd, subject=_subject),
    **{name: Method(partial(_explained, **options), "fxlrp", subject=_subject) for name, options in {
        "evidence": {"preset": "evidence"}, "attnlrp": {"preset": "attnlrp"}, "conserving": {"preset": "conserving"},
        "evidence, low memory": {"preset": "evidence", "memory": "low"},
    }.items()},
}  # fmt: skip
LANGUAGE = Benchmark(
    "language", "Time the explanation of a token by a 0.5 B language model.", f"{__name__}:METHODS", listed(*CASES),
    rounds=5, facts={"call_mb": ".0f", "held_mb": ".0f"},
)  # fmt: skip
