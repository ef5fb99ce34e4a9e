"""Guards around a pipeline's transforms, which name the file that one of them cannot use."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmcv import imfrombytes
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine import fileio
from mmengine.dataset import Compose

from ..errors import UserError

_REMEDY = "replace it, or take it out of the data set"


def guard_pipeline(pipeline: Compose, labels: tuple[int, int] | None) -> None:
    """Put guards around a pipeline's transforms, and around those that load files inside TestTimeAug and the like.

    Args:
        pipeline: a dataset's, changed in place.
        labels: the number of classes and the label to ignore; None where the labels in a label map may have any value.
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
    """A transform, with what it raises made into a sentence where it is a file's fault."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __repr__(self) -> str:
        return repr(self.transform)


class _Step(_Guard):
    """Any transform: it names the image that OpenCV refuses, and takes images of one column."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            transformed = self.transform(results)
        except cv2.error as error:
            size = f", of {_size(results['ori_shape'])} pixels," if "ori_shape" in results else ""
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the image {results.get('img_path')}{size} does not go through the pipeline ({reason}): take it out "
                "of the data set, or change the pipeline"
            ) from error
        image = transformed.get("img") if isinstance(transformed, dict) else None
        # One column that was flipped counts as contiguous, but has a negative stride, which torch refuses.
        if isinstance(image, np.ndarray) and image.flags.c_contiguous and min(image.strides) < 0:
            transformed["img"] = image.copy()
        return transformed


class _ImageLoading(_Guard):
    """A LoadImageFromFile."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self.transform(results)
        except Exception:
            if path := results.get("img_path"):
                _decode("image", path, self.transform, self.transform.color_type)
            raise


class _AnnotationLoading(_Guard):
    """A LoadAnnotations of mmcv, mmdet or mmseg, with its label map held to the image's size and the model's classes.

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
                raise UserError(f"{owner} no segmentation: add it, or take the annotation out, or train without masks")
            if isinstance(mask, dict) and tuple(mask.get("size", shape)) != tuple(shape):
                raise UserError(
                    f"{owner} a mask of {_size(mask['size'])} pixels where the image has {_size(shape)}: correct the "
                    "annotation"
                )

    def _check_label_map(self, results: dict[str, Any]) -> None:
        path, shape, label_map = results["seg_map_path"], results["ori_shape"], results["gt_seg_map"]
        if 1 in shape and label_map.size == shape[0] * shape[1]:
            results["gt_seg_map"] = label_map = label_map.reshape(shape)  # mmcv drops sides of one pixel
        if label_map.ndim != 2:
            raise UserError(
                f"the label map {path} has {label_map.shape[-1]} channels: it must have one, with the number of each "
                "pixel's class"
            )
        if label_map.shape != tuple(shape):
            raise UserError(
                f"the label map {path} has {_size(label_map.shape)} pixels, but its image {results['img_path']} has "
                f"{_size(shape)}, turned as its EXIF data may ask for: correct one of the two, or take both out"
            )
        if self.labels is None:
            return
        classes, ignored = self.labels
        outside = (label_map >= classes) & (label_map != ignored)
        if outside.any():
            raise UserError(
                f"the label map {path} has the label {label_map[outside].max()}, but the model knows 0 to "
                f"{classes - 1}, and {ignored} for pixels to ignore: correct the label map, or the classes or "
                "reduce_zero_label in the config"
            )


def _decode(what: str, path: str, transform: LoadImageFromFile | LoadAnnotations, color_type: str) -> np.ndarray | None:
    """Return a picture as a transform decodes it, None where the transform reads it in a way that is not known here.

    Raises:
        UserError: it cannot be read or decoded.
    """
    if getattr(transform, "file_client_args", None):  # MMEngine's older way to files elsewhere
        return None
    try:
        content = fileio.get(path, backend_args=transform.backend_args)
    except FileNotFoundError as error:
        raise UserError(f"the {what} {path} is missing: put it there, or take it out of the data set") from error
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    if not content:
        raise UserError(f"the {what} {path} is an empty file: {_REMEDY}")
    try:
        picture = imfrombytes(content, flag=color_type, backend=transform.imdecode_backend)
    except (OSError, SyntaxError, cv2.error):  # as Pillow and OpenCV raise them
        picture = None
    if picture is None:
        raise UserError(f"the {what} {path} cannot be decoded, as it is damaged or no picture at all: {_REMEDY}")
    return picture


def _size(shape: Any) -> str:
    return f"{shape[1]}×{shape[0]}"
