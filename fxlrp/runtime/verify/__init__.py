"""Whether what is explained is the model: its own output beside that of the graph that was captured from it.

`verifier` says when and what is checked, `sides` runs model and graph, `comparison` says whether outputs are the same,
`reasons` why they are not. `program` compares the program that was emitted from the graph.
"""

from fxlrp.runtime.verify.program import check_program
from fxlrp.runtime.verify.reasons import DifferentFunctionError
from fxlrp.runtime.verify.verifier import Verifier

__all__ = ["DifferentFunctionError", "Verifier", "check_program"]
