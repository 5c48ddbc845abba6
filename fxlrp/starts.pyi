from fxlrp.rules.starts import *
