"""The way from a config and a checkpoint to a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import write_file
from ..stack import check_stack
from .quantization import SlowerWarning
from .targets import check_options

if TYPE_CHECKING:
    from mmengine.config import Config

SHAPES = {"detection": (800, 1333), "segmentation": (512, 512)}
"""Height and width of the images by default: those of the configs' test pipelines."""


def export(
    config: str | Path | Config,
    checkpoint: str | Path,
    path: str | Path,
    target: str = "onnx",
    part: str = "model",
    shape: tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: bool = False,
    opset: int | None = None,
    quantize: str | None = None,
    calibration: str | Path | None = None,
    max_images: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a trained model as a file for another runtime.

    The file takes ``input`` (B, 3, H, W), float32 RGB from 0 to 255, and normalizes it itself. It returns

    - of a detector ``dets`` (B, K, 5), boxes xyxy in pixels of the input and scores, the highest first, ``labels``
      (B, K), and of Mask R-CNN ``masks`` (B, K, H, W). K is the config's ``max_per_img``; what is missing has the score
      0 and the label -1;
    - of a segmentor ``output`` (B, H, W), the class of each pixel, and ``scores`` (B, H, W), its probability;
    - of a network the maps of its heads, and of a backbone ``c2`` to ``c5``.

    Args:
        config: as for :class:`mmcare.Predictor`.
        checkpoint: its weights: a file or its http(s) address.
        path: the file to write.
        target: one of :data:`mmcare.export.TARGETS`.
        part: one of :data:`mmcare.export.PARTS`.
        shape: height and width of the images; by default 800×1333 for detectors and 512×512 for segmentors.
        batch: number of images.
        dynamic: whether the file takes any number and size of images, from 32×32, instead.
        opset: version of ONNX's operators; by default the target's.
        quantize: smaller numbers, "fp16" or "int8", where the target has them; see docs/quantization.md.
        calibration: a folder of pictures to take the ranges of int8 from.
        max_images: most pictures that are taken from it; 100 by default.
        overwrite: replace a file that is there already.

    Returns:
        The path.

    Raises:
        UserError: the arguments cannot be used, a package is missing, or the file cannot be written.

    Warns:
        SlowerWarning: the file has smaller numbers and is not faster for it on this machine.
    """
    chosen = check_options(target, part, opset, quantize, calibration)
    path = Path(path)
    if path.suffix.lower() != chosen.ending:
        raise UserError(f"{path} does not end in {chosen.ending}: give another name with -o")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give another name with -o")
    there = [file for ending in (chosen.ending, *chosen.beside) if (file := path.with_suffix(ending)).exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} exists: add --overwrite to replace it, or give another name with -o")
    if dynamic and (shape or batch != 1):
        raise UserError("a dynamic file takes any number and size of images: omit --shape and --batch, or --dynamic")
    if batch < 1:
        raise UserError(f"a file takes at least 1 image at a time, not {batch}: give another --batch")
    check_stack()
    from ..inference import Predictor
    from .preparation import prepare

    trained = Predictor(config, checkpoint, device="cpu", fast=False)
    prepared = prepare(
        trained.model,
        trained.task,
        part,
        chosen.form,
        shape or SHAPES[trained.task],
        batch,
        dynamic,
        chosen.detection_operators,
    )
    opset = opset or chosen.opset
    warning = None
    if quantize is None:
        content = chosen.load().convert(prepared, opset)
    else:
        from .quantization.calibration import DEFAULT_IMAGES, read_pictures

        pictures = None
        if calibration is not None:
            most = DEFAULT_IMAGES if max_images is None else max_images
            pictures = read_pictures(calibration, trained.transforms, prepared, most)
        quantized = chosen.quantizers[quantize].load().quantize(prepared, opset, pictures)
        content, warning = quantized.content, quantized.warning
    files = content if isinstance(content, dict) else {chosen.ending: content}
    for ending in sorted(files, key=chosen.ending.__eq__):  # the file that is opened comes last
        write_file(path.with_suffix(ending), files[ending])
    if warning:
        warnings.warn(warning, SlowerWarning, stacklevel=2)
    return path
