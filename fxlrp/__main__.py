"""``python -m fxlrp`` is ``fxlrp``, for ``torchrun -m fxlrp evaluate CONFIG``."""

from fxlrp.cli.application import main

main()
