from fxlrp.loading.images import *
