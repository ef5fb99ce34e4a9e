"""The sample data and people's own data sets."""

from .configs import innermost_datasets, is_pretrained, type_name

__all__ = ["innermost_datasets", "is_pretrained", "type_name"]
