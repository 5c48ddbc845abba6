"""Models of texts for ``fxlrp evaluate``: a sentence encoder and a small language model, trained, from packages."""

from examples import sentence_similarity, smollm2
from fxlrp.evaluation.tokens import Passage, TokenModel
from fxlrp.evaluation.tokens.subject import causal_model


def minilm() -> TokenModel:
    """all-MiniLM-L6-v2 (extra ``text``): the similarity of the first sentence of a line, ``first | second``.

    The tokens of the first sentence are measured, without those that mark its ends.
    """
    model, tokenizer = sentence_similarity.load()

    def read(line: str) -> Passage:
        own, other = (sentence_similarity.tokenize(tokenizer, [part.strip()]) for part in line.split("|"))
        inputs = {"input_ids": own[0], "attention_mask": own[1], "other_ids": other[0], "other_mask": other[1]}
        return Passage(inputs, measured=slice(1, -1))

    return TokenModel(model, read, tokenizer.mask_token_id)


def smollm2_135m() -> TokenModel:
    """SmolLM2-135M-Instruct (see :mod:`examples.smollm2`): the token that follows a prompt."""
    return causal_model(*smollm2.load())
