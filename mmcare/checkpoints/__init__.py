"""Checkpoints: safe reading, fitting to a model, saving, and resuming."""

from .classes import class_names, fit_classes
from .fitting import fit_weights, list_names, unwrapped
from .loading import PretrainedBackbone, load_checkpoint, make_loading_safe
from .reading import read_checkpoint
from .resuming import choose_checkpoint
from .saving import guard_checkpoint_saving
from .selecting import is_ema_copy, select_weights

__all__ = [
    "PretrainedBackbone",
    "choose_checkpoint",
    "class_names",
    "fit_classes",
    "fit_weights",
    "guard_checkpoint_saving",
    "is_ema_copy",
    "list_names",
    "load_checkpoint",
    "make_loading_safe",
    "read_checkpoint",
    "select_weights",
    "unwrapped",
]
