from fxlrp.rules.split import *
