"""What pages show of a photograph: a slider from it to its map, a switch between classes, what the model says of it."""

from fxlrp.views.entry.parts import Entry, Map, data_uri, frame_of, page

__all__ = ["Entry", "Map", "data_uri", "frame_of", "page"]
