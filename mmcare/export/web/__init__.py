"""A page that runs a model in a browser, without a server and without a network."""

from .exporting import export_page
from .library import read_library

__all__ = ["export_page", "read_library"]
