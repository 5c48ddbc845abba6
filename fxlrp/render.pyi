from fxlrp.maps.rendering import *
