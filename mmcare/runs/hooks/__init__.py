"""Hooks for MMEngine's Runner."""

from .checkpoint_fit import CheckpointFitHook
from .finite_loss import FiniteLossHook
from .reparameterize import ReparameterizeHook
from .safe_checkpoint import SafeCheckpointHook

__all__ = ["CheckpointFitHook", "FiniteLossHook", "ReparameterizeHook", "SafeCheckpointHook"]
