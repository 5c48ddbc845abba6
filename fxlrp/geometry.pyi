from fxlrp.loading.geometry import *
