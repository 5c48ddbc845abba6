"""What all tests share: one thread a worker, fixed seeds, and the optional data folder."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile(
    "fxlrp",
    deadline=None,
    derandomize=True,
    max_examples=25,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fxlrp")


def pytest_configure(config):
    torch.set_num_threads(1 if hasattr(config, "workerinput") else 2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def evaluation_place(monkeypatch):
    """Evaluations find models and methods by name in the folder of the tests; threads are as before afterwards."""
    monkeypatch.chdir(Path(__file__).parent)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared():
    """The optional data folder beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the optional data folder ../shared is not here")
    return SHARED
