"""Pictures of heatmaps: colours, overlays on a photograph, grids of methods × images, PNG files.

They need the extra ``draw``. Pictures are uint8 tensors (height, width, 3).
"""

from fxlrp.maps.rendering.coloring import (
    COLORS,
    blurred,
    color_range,
    colorize,
    fitting_colors,
    overlay,
    scaled,
    stretched,
    to_photo,
)
from fxlrp.maps.rendering.layout import Cell, Line, Scale, contact_sheet, drawn, grid, sheet, with_bar
from fxlrp.maps.rendering.pixels import enlarge, save_jpeg, save_png

__all__ = [
    "COLORS",
    "Cell",
    "Line",
    "Scale",
    "blurred",
    "color_range",
    "colorize",
    "contact_sheet",
    "drawn",
    "enlarge",
    "fitting_colors",
    "grid",
    "overlay",
    "save_jpeg",
    "save_png",
    "scaled",
    "sheet",
    "stretched",
    "to_photo",
    "with_bar",
]
