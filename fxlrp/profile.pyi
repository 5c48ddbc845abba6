from fxlrp.results.profile import *
