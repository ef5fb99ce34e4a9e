"""Shared code of the command lines: options and error reporting."""

from .display import has_display
from .options import Parser, add_cfg_options, config_parser, parse_cfg_options, read_config, read_run_config, run_parser
from .running import run
from .shapes import add_shape

__all__ = [
    "Parser",
    "add_cfg_options",
    "add_shape",
    "config_parser",
    "has_display",
    "parse_cfg_options",
    "read_config",
    "read_run_config",
    "run",
    "run_parser",
]
