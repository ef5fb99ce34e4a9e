"""Guards around the transforms of a pipeline that name the file if a transform fails."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmcv import imfrombytes
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine import fileio
from mmengine.dataset import Compose

from ..errors import UserError

_REMEDY = "replace it, or remove it from the data set"


def guard_pipeline(pipeline: Compose, labels: tuple[int, int] | None) -> None:
    """Wrap a pipeline's transforms in guards, including transforms that load files inside TestTimeAug and the like.

    Args:
        pipeline: the pipeline of a dataset, which is changed in place.
        labels: the number of classes and the ignored label; None if label maps may have any labels.
    """
    _guard_loading(pipeline, labels)
    pipeline.transforms = [_Step(transform) for transform in pipeline.transforms]


def _guard_loading(owner: Any, labels: tuple[int, int] | None) -> None:
    for name in ("transforms", "subroutines"):
        steps = getattr(owner, name, [])
        for index, step in enumerate(steps if isinstance(steps, list) else []):
            if isinstance(step, LoadImageFromFile):
                steps[index] = _ImageLoading(step)
            elif isinstance(step, LoadAnnotations):
                steps[index] = _AnnotationLoading(step, labels)
            else:
                _guard_loading(step, labels)
        if not isinstance(steps, list):
            _guard_loading(steps, labels)


class _Guard:
    """A wrapper of a transform that raises a UserError if a file is at fault."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __repr__(self) -> str:
        return repr(self.transform)


class _Step(_Guard):
    """A guard for any transform: it names an image that OpenCV rejects, and supports images with a single column."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            transformed = self.transform(results)
        except cv2.error as error:
            size = f", of {_size(results['ori_shape'])} pixels," if "ori_shape" in results else ""
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the image {results.get('img_path')}{size} fails in the pipeline ({reason}): remove it from the data "
                "set, or change the pipeline"
            ) from error
        image = transformed.get("img") if isinstance(transformed, dict) else None
        # A flipped single column counts as contiguous, but has a negative stride, which torch does not support.
        if isinstance(image, np.ndarray) and image.flags.c_contiguous and min(image.strides) < 0:
            transformed["img"] = image.copy()
        return transformed


class _ImageLoading(_Guard):
    """A guard for LoadImageFromFile."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self.transform(results)
        except Exception:
            if path := results.get("img_path"):
                _decode("image", path, self.transform, self.transform.color_type)
            raise


class _AnnotationLoading(_Guard):
    """A guard for LoadAnnotations of mmcv, mmdet or mmseg that also checks the size and the labels of label maps.

    Args:
        transform: the LoadAnnotations.
        labels: see :func:`guard_pipeline`.
    """

    def __init__(self, transform: LoadAnnotations, labels: tuple[int, int] | None) -> None:
        super().__init__(transform)
        self.labels = labels

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            loaded = self.transform(results)
        except Exception:
            if self.transform.with_seg and (path := results.get("seg_map_path")):
                label_map = _decode("label map", path, self.transform, "unchanged")
                if label_map is not None and label_map.size == 1:
                    raise UserError(
                        f"the label map {path} is a single pixel, which MMSegmentation cannot read: {_REMEDY}"
                    ) from None
            if getattr(self.transform, "with_mask", False):
                self._check_masks(results)
            raise
        if self.transform.with_seg and "ori_shape" in loaded:
            self._check_label_map(loaded)
        return loaded

    def _check_masks(self, results: dict[str, Any]) -> None:
        shape = results["ori_shape"]
        for instance in results.get("instances", []):
            owner = f"an annotation of the image {results['img_path']}, with the bbox (x1, y1, x2, y2) "
            owner += f"{instance['bbox']}, has"
            mask = instance.get("mask")
            if not mask:
                raise UserError(f"{owner} no segmentation: add it, remove the annotation, or train without masks")
            if isinstance(mask, dict) and tuple(mask.get("size", shape)) != tuple(shape):
                raise UserError(
                    f"{owner} a mask of {_size(mask['size'])} pixels, but the image has {_size(shape)}: correct the "
                    "annotation"
                )

    def _check_label_map(self, results: dict[str, Any]) -> None:
        path, shape, label_map = results["seg_map_path"], results["ori_shape"], results["gt_seg_map"]
        if 1 in shape and label_map.size == shape[0] * shape[1]:
            results["gt_seg_map"] = label_map = label_map.reshape(shape)  # mmcv drops sides of one pixel
        if label_map.ndim != 2:
            raise UserError(
                f"the label map {path} has {label_map.shape[-1]} channels: it must have one, with the class number of "
                "each pixel"
            )
        if label_map.shape != tuple(shape):
            raise UserError(
                f"the label map {path} has {_size(label_map.shape)} pixels, but its image {results['img_path']} has "
                f"{_size(shape)} after any EXIF rotation: correct one of the two, or remove both"
            )
        if self.labels is None:
            return
        classes, ignored = self.labels
        outside = (label_map >= classes) & (label_map != ignored)
        if outside.any():
            raise UserError(
                f"the label map {path} has the label {label_map[outside].max()}, but the model has the labels 0 to "
                f"{classes - 1}, and {ignored} for ignored pixels: correct the label map, or the classes or "
                "reduce_zero_label in the config"
            )


def _decode(what: str, path: str, transform: LoadImageFromFile | LoadAnnotations, color_type: str) -> np.ndarray | None:
    """Return a picture as a transform decodes it; None if the transform reads it in an unknown way.

    Raises:
        UserError: the picture cannot be read or decoded.
    """
    if getattr(transform, "file_client_args", None):  # MMEngine's older settings for remote files
        return None
    try:
        content = fileio.get(path, backend_args=transform.backend_args)
    except FileNotFoundError as error:
        raise UserError(f"the {what} {path} is missing: add it, or remove it from the data set") from error
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    if not content:
        raise UserError(f"the {what} {path} is an empty file: {_REMEDY}")
    try:
        picture = imfrombytes(content, flag=color_type, backend=transform.imdecode_backend)
    except (OSError, SyntaxError, cv2.error):  # raised by Pillow and OpenCV
        picture = None
    if picture is None:
        raise UserError(f"the {what} {path} cannot be decoded, as it is damaged or not a picture: {_REMEDY}")
    return picture


def _size(shape: Any) -> str:
    return f"{shape[1]}×{shape[0]}"
