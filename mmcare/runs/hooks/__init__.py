"""Hooks for MMEngine's Runner."""

from .checkpoint_fit import CheckpointFitHook
from .distillation import DistillationHook
from .finite_loss import FiniteLossHook
from .reparameterize import ReparameterizeHook
from .safe_checkpoint import SafeCheckpointHook

__all__ = ["CheckpointFitHook", "DistillationHook", "FiniteLossHook", "ReparameterizeHook", "SafeCheckpointHook"]
