"""The step that all targets share: from a trained model to a module from pictures to named tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from ..errors import UserError
from ..models import MIN_SIZE
from .forms import backbones, to_form

INPUT = "input"
"""The name of the input, as mmdeploy has it."""

TRACED = (320, 416)
"""The example for images of all sizes: no map that a neck or a head makes of it is square, or has a side of 1, which
``torch.export`` would take for properties of all images."""


@dataclass(frozen=True)
class Prepared:
    """A model that is ready for a target.

    Attributes:
        module: from images (B, 3, H, W), RGB from 0 to 255, to a tuple of tensors, in eval mode and without gradients.
        images: an example of its input.
        outputs: the names of its outputs.
        dynamic: whether the file takes other B, H and W than those of the example.
        form: the form of the backbone, one of :data:`.forms.FORMS`.
    """

    module: nn.Module
    images: Tensor
    outputs: tuple[str, ...]
    dynamic: bool
    form: str


class FromPictures(nn.Module):
    """Normalization and padding, as the config's data preprocessor does them, and then the model.

    Args:
        compute: takes the normalized images and the height and width without padding.
        preprocessor: the data preprocessor; it gets BGR pictures from the pipeline, the module RGB ones.
    """

    def __init__(self, compute: nn.Module, preprocessor: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        settings = vars(preprocessor)
        self.is_rgb = settings.get("_channel_conversion", settings.get("channel_conversion", False))
        self.divisor = settings.get("pad_size_divisor", 1)
        self.padding = float(settings.get("pad_value", 0))
        for name, default in (("mean", 0.0), ("std", 1.0)):
            value = getattr(preprocessor, name, torch.full((3, 1, 1), default)).detach()
            self.register_buffer(name, value.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), RGB from 0 to 255 → the outputs."""
        height, width = images.shape[2:]
        images = images if self.is_rgb else images.flip(1)
        images = (images - self.mean) / self.std
        if self.divisor > 1:
            images = F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor), value=self.padding)
        return tuple(self.compute(images, (height, width)))


class _Backbone(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return self.backbone(images)


def prepare(
    model: nn.Module,
    task: str,
    part: str = "model",
    form: str = "plain",
    shape: tuple[int, int] = (512, 512),
    batch: int = 1,
    dynamic: bool = False,
    detection_operators: bool = True,
) -> Prepared:
    """Prepare a trained model.

    Args:
        model: the detector or segmentor, which is changed.
        task: "detection" or "segmentation".
        part: one of :data:`mmcare.export.PARTS`.
        form: the form of the backbone, one of :data:`.forms.FORMS`; one that is not ours stays plain.
        shape: height and width of the images.
        batch: number of images.
        dynamic: whether the file takes any number and size of images, instead.
        detection_operators: whether the target has non-maximum suppression and RoI align; if not, plain tensor
            operations compute them.

    Raises:
        UserError: there is no export of the model, or the images are too small for it.
    """
    if min(shape) < MIN_SIZE:
        raise UserError(f"images of {shape[0]}×{shape[1]} are too small: give --shape with sides of {MIN_SIZE} or more")
    if not backbones(model):
        form = "plain"
    model = to_form(revert_sync_batchnorm(model).eval().requires_grad_(False), form)
    if part == "backbone":
        compute, outputs = _Backbone(model.backbone), _names(model.backbone)
    elif part == "model" and task == "detection":
        from . import detection

        compute, outputs = detection.build(model, detection_operators)
    else:
        room = import_module(f".{task}", __package__)
        compute, outputs = (room.build if part == "model" else room.build_network)(model)
    module = FromPictures(compute, model.data_preprocessor).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    if dynamic:
        batch, shape = 3, TRACED
    images = torch.rand((batch, 3, *shape), generator=generator) * 255
    return Prepared(module, images, outputs, dynamic, form)


def _names(backbone: nn.Module) -> tuple[str, ...]:
    """Return ``c2`` to ``c5``, the papers' names of the maps at strides 4 to 32."""
    indices: Sequence[int] = getattr(backbone, "out_indices", range(4))
    return tuple(f"c{index + 2}" for index in indices)
