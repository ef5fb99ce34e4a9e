"""The fast form of a trained model, for inference."""

from .freed_memory import keep_freed_memory
from .reparameterization import reparameterize

__all__ = ["keep_freed_memory", "reparameterize"]
