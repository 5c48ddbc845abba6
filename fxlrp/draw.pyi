from fxlrp.views.draw import *
