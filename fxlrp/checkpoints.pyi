from fxlrp.loading.checkpoints import *
