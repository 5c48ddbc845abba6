from fxlrp.views.explorer import *
