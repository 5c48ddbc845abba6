from fxlrp.maps.heatmap import *
