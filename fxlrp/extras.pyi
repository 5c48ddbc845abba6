from fxlrp.common.extras import *
