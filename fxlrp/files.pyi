from fxlrp.common.atomic_files import *
