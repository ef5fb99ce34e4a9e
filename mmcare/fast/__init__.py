"""The fast form of a trained model, for inference."""

from .casvit import compute_apart
from .convolutions import InParts
from .folding import fold_norms
from .freed_memory import keep_freed_memory
from .reparameterization import reparameterize

__all__ = ["InParts", "compute_apart", "fold_norms", "keep_freed_memory", "reparameterize"]
