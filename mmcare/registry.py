"""Child registries of MMEngine's registries, with the scope ``mmcare``.

MMEngine imports ``mmcare.registry`` when a config of any mm project names a type ``mmcare.…``, and finds the classes
through the ``locations`` below. So configs need no ``custom_imports``.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry(
    "model", parent=MMENGINE_MODELS, scope="mmcare", locations=["mmcare.models", "mmcare.export.exported_model"]
)
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="mmcare", locations=["mmcare.runs.hooks"])
OPTIM_WRAPPERS = Registry(
    "optim_wrapper", parent=MMENGINE_OPTIM_WRAPPERS, scope="mmcare", locations=["mmcare.runs.amp"]
)
WEIGHT_INITIALIZERS = Registry(
    "weight initializer", parent=MMENGINE_WEIGHT_INITIALIZERS, scope="mmcare", locations=["mmcare.checkpoints"]
)
