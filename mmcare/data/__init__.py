"""The sample data and people's own data sets."""

from .datasets import innermost_datasets

__all__ = ["innermost_datasets"]
