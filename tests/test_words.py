"""Numbers and ledgers in words."""

import pytest

from fxlrp.results.words import absorbed_in_words, in_words, number, percent, short, titled


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (3, "3"), (-0.00123, "−0.0012"), (7e-5, "7 · 10⁻⁵"), (-1.84e-4, "−1.8 · 10⁻⁴"), (12345, "1.2 · 10⁴"),
])  # fmt: skip
def test_short_numbers(value, text):
    assert short(value) == text


def test_shares_and_titles():
    assert number(-10.86) == "−10.9"
    assert [percent(share) for share in (0.394553, 1.3e-5, 0)] == ["39.5 %", "under 0.1 %", "0.0 %"]
    assert titled("tabby", 0.3946, 1.2538, 1.2412, "logits") == "tabby, 39.5 %, 1.25 logits (99 % arrived)"
    assert titled("the output", None, 0.0, 0.0, "") == "the output, 0"


def test_a_ledger_in_words():
    assert in_words(1.25, 1.25, {"bias": 0.0}, "V") == "Nothing was absorbed: all 1.25 V arrived at the input."
    assert in_words(1.25, 1.0, None, "logits") == "What was absorbed on the way was not asked for."
    told = in_words(2.0, 1.5, {"stabilizer": -0.1, "bias": 0.6, "padding": 0.0, "mine": 0.0}, "logits")
    assert told == ("Of 2 logits, 1.5 arrived at the input (75.0 %). Absorbed on the way: 0.6 by biases; "
                    "−0.1 by the stabilizers of denominators.")  # fmt: skip
    assert absorbed_in_words({"mine": 0.5, "bias": 0}, " %") == "0.5 % by mine"
