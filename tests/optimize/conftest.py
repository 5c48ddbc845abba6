"""What the tests of the optimiser share."""

import pytest


@pytest.fixture(autouse=True)
def _captures(exported_once):
    """The optimiser works on what was captured; how often it was is no matter."""
