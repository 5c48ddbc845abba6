from fxlrp.views.report import *
