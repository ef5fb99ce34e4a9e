"""From a trained model to a file for a runtime.

Importing this package is cheap: torch and a target's packages are imported when a model is exported.
"""

from .exporting import export
from .fitting import check_classes, check_fit
from .quantization import SlowerWarning
from .targets import PAGE, PARTS, TARGETS, check_options, is_exported
from .web import export_page

__all__ = [
    "PAGE",
    "PARTS",
    "TARGETS",
    "SlowerWarning",
    "check_classes",
    "check_fit",
    "check_options",
    "export",
    "export_page",
    "is_exported",
]
