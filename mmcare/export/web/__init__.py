"""A page that runs a model in a browser, without a server and without a network."""

from .exporting import export_page
from .library import NAME, VERSION, read_library

__all__ = ["NAME", "VERSION", "export_page", "read_library"]
