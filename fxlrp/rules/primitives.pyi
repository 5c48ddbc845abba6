from fxlrp.steps.primitives import *
