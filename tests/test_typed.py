"""What mypy tells who uses the package: results have types, and a wrong argument is seen."""

import pytest

USER = """
import torch
import fxlrp

explainer = fxlrp.compile(torch.nn.Linear(4, 3).eval(), "epsilon_plus", checkpoints=["0"])
explanation = explainer(torch.rand(2, 4), target=[0, 1])
reveal_type(explanation)
reveal_type(explainer(**{"x": torch.rand(2, 4)}))
reveal_type(explainer.ledger(torch.rand(2, 4)).absorbed)
reveal_type(fxlrp.Explanation.read(explanation.save("x.npz")))
fxlrp.compile(torch.nn.Linear(4, 3), prest="epsilon")
"""


@pytest.mark.slow
def test_a_script_of_a_user_is_checked(tmp_path):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "user.py").write_text(USER)
    out, _, _ = api.run(["--strict", "--follow-imports=silent", f"--cache-dir={tmp_path}", str(tmp_path / "user.py")])
    told = [line.partition("user.py:")[2] for line in out.splitlines() if "user.py:" in line]
    explanation = "fxlrp.results.explanation.Explanation"
    assert told == [
        f'7: note: Revealed type is "{explanation}"', f'8: note: Revealed type is "{explanation}"',
        '9: note: Revealed type is "dict[str, torch._tensor.Tensor]"', f'10: note: Revealed type is "{explanation}"',
        '11: error: Unexpected keyword argument "prest"; did you mean "preset"?  [call-arg]',
    ]  # fmt: skip
