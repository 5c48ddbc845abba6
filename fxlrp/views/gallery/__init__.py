"""A page to look through explanations: photographs, their maps, and what is known of each; one file, no network."""

from fxlrp.views.entry import Entry, Map
from fxlrp.views.gallery.page import write_gallery

__all__ = ["Entry", "Map", "write_gallery"]
