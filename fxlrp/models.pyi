from fxlrp.loading.models import *
