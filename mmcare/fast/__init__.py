"""The fast form of a trained model, for inference."""

from .convolutions import InParts
from .folding import fold_norms
from .freed_memory import keep_freed_memory
from .reparameterization import reparameterize

__all__ = ["InParts", "fold_norms", "keep_freed_memory", "reparameterize"]
