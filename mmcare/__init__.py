"""mmcare: the CARE and CAS-ViT backbones for dense prediction with OpenMMLab.

Importing the package imports nothing else: exported names are loaded on first use, so that ``python -m mmcare.stack``
can examine an installation in which torch or mmcv cannot be imported.
"""

from importlib import import_module
from typing import Any

from .version import __version__

_EXPORTS = {
    "CARE": "mmcare.models",
    "CAREAblation": "mmcare.models",
    "CAREHead": "mmcare.models",
    "CASViT": "mmcare.models",
    "CASViTAblation": "mmcare.models",
    "CASViTHead": "mmcare.models",
    "Prediction": "mmcare.inference",
    "Predictor": "mmcare.inference",
    "UserError": "mmcare.errors",
    "create_backbone": "mmcare.models",
    "get_config": "mmcare.runs",
    "keep_freed_memory": "mmcare.fast",
    "list_backbones": "mmcare.models",
    "list_configs": "mmcare.runs",
    "load_checkpoint": "mmcare.checkpoints",
    "make_loading_safe": "mmcare.checkpoints",
    "reparameterize": "mmcare.fast",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
