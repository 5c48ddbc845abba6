"""Examples: a model to name on the command line, and the demo."""
