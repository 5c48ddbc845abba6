"""Rules written as text: which rule they mean, and that nothing in them is run."""

import pytest

from fxlrp import rules
from fxlrp.errors import RuleError
from fxlrp.loading.rule_text import RULES, read_rule, read_rules
from fxlrp.rules import Bilinear, Epsilon, Recurrent, SignedSplit, WindowAverage, ZPlus


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Epsilon(1e-6)", Epsilon(1e-6)),
        ("ZPlus", ZPlus()),
        ("zplus()", ZPlus()),
        (" EPSILON( 0.5, bias='absorb' ) ", Epsilon(0.5, bias="absorb")),
        ("ZPlus(stabilizer=1e-5)", ZPlus(stabilizer=1e-5)),
        ("Bilinear(Epsilon(0.25))", Bilinear(Epsilon(0.25))),
        ("windowaverage(zplus, kernel=(2, 2))", WindowAverage(ZPlus(), kernel=(2, 2))),
        ("Recurrent(split=SignedSplit(1e-3))", Recurrent(split=SignedSplit(1e-3))),
    ],
)
def test_text_is_read_as_a_rule(text, rule):
    assert read_rule(text.strip()) == rule


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_read_by_its_name(name):
    assert read_rule(name) == RULES[name]() == read_rule(f"{name.lower()}()")


def test_abstract_rules_have_no_name():
    families = {name for name in rules.__all__ if name.endswith("Rule")}
    assert "LinearRule" in families
    assert not families & RULES.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Epsilo(1)", "'Epsilo' is no rule: choose one of .*Epsilon, .*ZPlus"),
        ("LinearRule()", "'LinearRule' is no rule"),
        ("fxlrp.rules.ZPlus()", r"'fxlrp\.rules\.ZPlus' is no rule"),
        ("__import__('os').system('ls')", r"__import__\('os'\)\.system.* is no rule"),
        ("Epsilon(open('x'))", "'open' is no rule"),
        ("Epsilon(2 * 3)", r"'2 \* 3' is neither a literal nor a rule"),
        ("Epsilon(*[1])", r"'\*\[1\]' is neither"),
        ("Epsilon(**{'bias': 'absorb'})", r"\*\*{'bias': 'absorb'}.* is neither"),
        ("Epsilon(lambda: 1)", "'lambda: 1' is neither"),
        ("Epsilon(1", r"'Epsilon\(1' is no rule with arguments"),
        ("Epsilon(\0)", "is no rule with arguments"),
        ("(" * 5000, "is no rule with arguments"),
        ("3", "'3' is no rule"),
        ("Epsilon(-1)", r"'Epsilon\(-1\)': a stabilizer must be zero or positive, not -1"),
        ("Epsilon(1, 2)", r"does not fit Epsilon\(.*bias.*\): too many positional arguments"),
        ("Epsilon(gamma=1)", "unexpected keyword argument 'gamma'"),
        ("Epsilon('much')", "does not fit Epsilon"),
        ("Epsilon(ZPlus)", r"does not fit Epsilon\(.*: epsilon is ZPlus\(\)"),
        ("Bilinear(3)", r"does not fit Bilinear\(.*: rule is 3"),
        ("Bilinear(Epsilon(-1))", r"^'Epsilon\(-1\)': a stabilizer"),
    ],
)
def test_error_shows_the_part_that_is_no_rule(text, message):
    with pytest.raises(RuleError, match=message):
        read_rule(text)


def test_each_pattern_has_one_rule():
    assert read_rules([]) == {}
    found = read_rules(["layer4.* = ZPlus(stabilizer=1e-5)", "head=epsilon"])
    assert found == {"layer4.*": ZPlus(stabilizer=1e-5), "head": Epsilon()}
    with pytest.raises(RuleError, match=r"--rule head=ZPlus: there is a rule for head already, Epsilon\(1e-06\)"):
        read_rules(["head=Epsilon", "head=ZPlus"])


@pytest.mark.parametrize("text", ["ZPlus", "=ZPlus", "head=", " = "])
def test_text_without_pattern_or_rule_is_an_error(text):
    with pytest.raises(RuleError, match="write PATTERN=RULE"):
        read_rules([text])
