"""RGB colours of the sample data's classes."""

PALETTE: list[tuple[int, int, int]] = [(230, 60, 70), (60, 170, 75), (65, 100, 225), (245, 170, 40)]
"""Colours of :data:`~mmcare.data.sample.CLASSES`."""

SEMANTIC_PALETTE: list[tuple[int, int, int]] = [(128, 128, 128), *PALETTE]
"""Colours of :data:`~mmcare.data.sample.SEMANTIC_CLASSES`."""
