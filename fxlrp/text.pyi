from fxlrp.maps.tokens import *
