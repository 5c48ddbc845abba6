"""``python -m fxlrp.cli`` is ``fxlrp``."""

from fxlrp.cli.application import main

main()
