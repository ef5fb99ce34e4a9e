"""The sample data, people's own data sets, and access to the data sets in a config."""

from .configs import innermost_datasets, is_pretrained, remove_pretrained, type_name

__all__ = ["innermost_datasets", "is_pretrained", "remove_pretrained", "type_name"]
