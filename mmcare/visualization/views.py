"""An image as a backbone gets it: through a config's test pipeline and data preprocessor, or without a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile, Pad, Resize
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..checkpoints import load_checkpoint, read_checkpoint
from ..errors import UserError
from ..inference import Item, build_test_transforms, prepare, stored_config
from ..models import PyramidBackbone, create_backbone
from ..runs import check_checkpoint, dense_task_of, explain_config_faults, load_config


@dataclass(frozen=True)
class View:
    """An image as a backbone gets it, and a point in it.

    Attributes:
        image: the input of the backbone, (3, H, W), normalized and padded.
        picture: the same image as resized, without padding, in RGB, (h, w, 3), 8 bits. Padding is on the right and
            below, so the pixels of both have the same coordinates.
        point: x and y in pixels of both.
    """

    image: Tensor
    picture: np.ndarray
    point: tuple[float, float]


@dataclass(frozen=True)
class Network:
    """A backbone with its weights, and what prepares its images.

    Attributes:
        backbone: the backbone in eval mode.
        transforms: transform a file into a tensor, as MMDetection's and MMSegmentation's test pipelines do.
        preprocessor: normalizes and pads the tensor.
    """

    backbone: PyramidBackbone
    transforms: tuple[Any, ...]
    preprocessor: nn.Module

    @property
    def name(self) -> str:
        """The name of the network, such as ``CARE s1``."""
        return f"{type(self.backbone).__name__} {self.backbone.arch_name}"

    def view(self, path: str | Path, point: tuple[float, float] | None = None) -> View:
        """Prepare an image file for the backbone.

        Args:
            path: the file.
            point: x and y in pixels of the file's image, turned as its EXIF orientation says; None for its centre.

        Raises:
            UserError: the file is not an image or cannot be decoded, or the point is outside the image.
        """
        (prepared,) = prepare(iter([Item(source=str(path))]), self.transforms, workers=0)
        if prepared.error:
            raise prepared.error
        resized, sample = prepared.inputs, prepared.sample
        height, width = sample.ori_shape
        x, y = point or (width / 2, height / 2)
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"the point ({x:g}, {y:g}) is outside {path}, which is {width} pixels wide and {height} high"
            )
        inner_height, inner_width = self._shape_before_padding(sample)
        picture = resized[:, :inner_height, :inner_width].flip(0).expand(3, -1, -1)  # images are loaded as BGR
        return View(
            image=self.preprocessor(dict(inputs=[resized], data_samples=[sample]))["inputs"][0],
            picture=picture.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy(),
            point=(x * inner_width / width, y * inner_height / height),
        )

    def _shape_before_padding(self, sample: BaseDataElement) -> tuple[int, int]:
        """Return the height and width of the resized image in a sample."""
        # Pad changes img_shape, and ResizeToMultiple does not change scale_factor.
        if any(isinstance(step, Pad) for step in self.transforms):
            width_factor, height_factor = sample.scale_factor
            height, width = sample.ori_shape
            return round(height * height_factor), round(width * width_factor)
        return sample.img_shape


def read_network(path: str, config: str | None = None, cfg_options: Mapping[str, Any] | None = None) -> Network:
    """Read the backbone of a detector or segmentor, and what its config does to test images.

    Args:
        path: checkpoint or release of the detector or segmentor, file or http(s) address.
        config: config file, or one of :func:`mmcare.list_configs`; None for the config that the checkpoint carries.
            Only the backbone, the data preprocessor and the test pipeline are used, so the classes need not be those of
            the checkpoint.
        cfg_options: settings of ``config`` to change.

    Raises:
        UserError: a file cannot be read, the checkpoint does not fit, or the backbone is not one of mmcare's.
    """
    check_checkpoint(path)
    if config:
        cfg = load_config(config, parts=("model",), cfg_options=cfg_options)
        dense_task_of(cfg)
    else:
        cfg = stored_config(read_checkpoint(path).get("meta"), path)
    owner = config or path
    if not cfg.model.get("backbone"):
        raise UserError(f"the model of {owner} has no backbone: give a detector or segmentor")
    preprocessing = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        with explain_config_faults(cfg, splits=()):
            backbone = MODELS.build(cfg.model.backbone)
            preprocessor = MODELS.build(preprocessing or dict(type="BaseDataPreprocessor"))
        transforms = build_test_transforms(cfg, path)
    if not isinstance(backbone, PyramidBackbone):
        raise UserError(
            f"the backbone of {owner} is {type(backbone).__name__}: only CARE and CAS-ViT can be visualized"
        )
    load_checkpoint(backbone, path)
    return Network(backbone.eval(), transforms, preprocessor)


def read_backbone(path: str, name: str) -> Network:
    """Read a backbone without a config; its images are resized and normalized as in mmcare's detectors.

    Args:
        path: checkpoint of the backbone, such as the authors' ImageNet weights, or of a detector or segmentor.
        name: one of :func:`mmcare.list_backbones`.

    Raises:
        UserError: the file cannot be read or does not fit, or there is no such backbone.
    """
    backbone = create_backbone(name, pretrained=path)
    transforms = (LoadImageFromFile(), Resize(scale=(1333, 800), keep_ratio=True), _pack)
    preprocessor = ImgDataPreprocessor(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32
    )
    return Network(backbone.eval(), transforms, preprocessor)


def _pack(results: dict[str, Any]) -> dict[str, Any]:
    """Pack an image for the preprocessor as MMDetection does."""
    shapes = {key: results[key] for key in ("ori_shape", "img_shape", "scale_factor")}
    image = torch.from_numpy(results["img"]).permute(2, 0, 1).contiguous()
    return dict(inputs=image, data_samples=BaseDataElement(metainfo=shapes))
