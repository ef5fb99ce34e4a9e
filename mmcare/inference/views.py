"""An image as a backbone gets it: through a config's test pipeline and data preprocessor, or without a config."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile, Pad, Resize
from mmengine.dataset import Compose
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from ..checkpoints import load_checkpoint
from ..data import innermost_datasets, type_name
from ..errors import UserError, closest
from ..models import CARE, CASViT, PyramidBackbone, list_backbones
from ..runs import check_checkpoint, explain_config_faults, load_config

_ANNOTATIONS = ("LoadAnnotations", "LoadPanopticAnnotations")
"""Transforms for what a new picture does not have."""


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
        pipeline: transforms a file into a tensor, as MMDetection's and MMSegmentation's pipelines do.
        preprocessor: normalizes and pads the tensor.
    """

    backbone: PyramidBackbone
    pipeline: Compose
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
        check_picture(path)
        try:
            data = self.pipeline(dict(img_path=str(path), img_id=0))
        except (AssertionError, cv2.error) as error:  # a format that OpenCV does not know, a side of less than a pixel
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path} fails in the test pipeline ({reason}): convert it to JPEG or PNG, and check its size"
            ) from error
        resized, sample = data["inputs"], data["data_samples"]
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
        if any(isinstance(step, Pad) for step in self.pipeline.transforms):
            width_factor, height_factor = sample.scale_factor
            height, width = sample.ori_shape
            return round(height * height_factor), round(width * width_factor)
        return sample.img_shape


def read_network(path: str, config: str, cfg_options: Mapping[str, Any] | None = None) -> Network:
    """Read the backbone of a detector or segmentor, and what its config does to test images.

    Args:
        path: checkpoint of the detector or segmentor, or of its backbone; file or http(s) address.
        config: config file, or one of :func:`mmcare.list_configs`. Only the backbone, the data preprocessor and the
            test pipeline are used, so the classes need not be those of the checkpoint.
        cfg_options: settings of the config to change.

    Raises:
        UserError: a file cannot be read, the checkpoint does not fit, or the backbone is not one of mmcare's.
    """
    check_checkpoint(path)
    cfg = load_config(config, parts=("model", "test_dataloader"), cfg_options=cfg_options)
    if not cfg.model.get("backbone"):
        raise UserError(f"the model of {config} has no backbone: give the config of a detector or segmentor")
    dataset = next(innermost_datasets(cfg.test_dataloader.get("dataset")), {})
    if not dataset.get("pipeline"):
        raise UserError(f"the test_dataloader of {config} has no pipeline: give a complete config")
    init_default_scope(cfg.default_scope)
    with explain_config_faults(cfg, splits=("test",)):
        backbone = MODELS.build(cfg.model.backbone)
        preprocessor = MODELS.build(cfg.model.get("data_preprocessor") or dict(type="BaseDataPreprocessor"))
        pipeline = Compose([step for step in dataset.pipeline if type_name(step) not in _ANNOTATIONS])
    if not isinstance(backbone, PyramidBackbone):
        raise UserError(
            f"the backbone of {config} is {type(backbone).__name__}: only CARE and CAS-ViT can be visualized"
        )
    load_checkpoint(backbone, path)
    return Network(backbone.eval(), pipeline, preprocessor)


def read_backbone(path: str, name: str) -> Network:
    """Read a backbone without a config; its images are resized and normalized as in mmcare's detectors.

    Args:
        path: checkpoint of the backbone, such as the authors' ImageNet weights, or of a detector or segmentor.
        name: one of :func:`mmcare.list_backbones`.

    Raises:
        UserError: the file cannot be read or does not fit, or there is no such backbone.
    """
    if name not in list_backbones():
        otherwise = f"choose one of {', '.join(list_backbones())}"
        raise UserError(f"mmcare has no backbone {name!r}: {closest(name, list_backbones(), otherwise)}")
    check_checkpoint(path)
    family, _, arch = name.partition("_")
    backbone = {"care": CARE, "casvit": CASViT}[family](arch)
    load_checkpoint(backbone, path, strict=False)  # ImageNet's checkpoints of CAS-ViT lack the norms of the pyramid
    pipeline = Compose([LoadImageFromFile(), Resize(scale=(1333, 800), keep_ratio=True), _pack])
    preprocessor = ImgDataPreprocessor(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32
    )
    return Network(backbone.eval(), pipeline, preprocessor)


def _pack(results: dict[str, Any]) -> dict[str, Any]:
    """Pack an image for the preprocessor as MMDetection does."""
    shapes = {key: results[key] for key in ("ori_shape", "img_shape", "scale_factor")}
    image = torch.from_numpy(results["img"]).permute(2, 0, 1).contiguous()
    return dict(inputs=image, data_samples=BaseDataElement(metainfo=shapes))


def check_picture(path: str | Path) -> None:
    """Check that a file is an image that can be decoded, without decoding one of an absurd size.

    Raises:
        UserError: it is not.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error comes at twice the size
            with Image.open(path) as picture:
                picture.load()
    except FileNotFoundError:
        raise UserError(f"there is no picture {path}: check the path (relative ones start at {os.getcwd()})") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture in a known format: give a JPEG or PNG file, for example") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UserError(f"{path} has more than {limit:.0f} million pixels by its header: make it smaller") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise for damaged files
        raise UserError(f"{path} cannot be decoded: {getattr(error, 'strerror', None) or error}") from error
