"""What the commands do, once the command line has been read. Needs the extras ``cli`` and ``draw``."""
