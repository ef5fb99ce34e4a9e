"""Files with smaller numbers: fp16 weights, or int8 with ranges from calibration pictures.

Each target that has them names a module for each kind in :data:`mmcare.export.TARGETS`. Its ``quantize(prepared, opset,
pictures, metric)`` takes the place of the target's ``convert`` and returns :class:`Quantized`. ``pictures`` is None for
fp16; ``metric`` is None where there is no test data, see :mod:`.search`.
"""

from .result import Quantized, SlowerWarning

__all__ = ["Quantized", "SlowerWarning"]
