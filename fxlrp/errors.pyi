from fxlrp.common.errors import *
