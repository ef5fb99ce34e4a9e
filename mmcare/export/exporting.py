"""The way from a config and a checkpoint to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import write_file
from ..stack import check_stack
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
        overwrite: replace a file that is there already.

    Returns:
        The path.

    Raises:
        UserError: the arguments cannot be used, a package is missing, or the file cannot be written.
    """
    chosen = check_options(target, part, opset)
    path = Path(path)
    if path.suffix.lower() != chosen.ending:
        raise UserError(f"{path} does not end in {chosen.ending}: give another name with -o")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give another name with -o")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: add --overwrite to replace it, or give another name with -o")
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
    write_file(path, chosen.load().convert(prepared, opset or chosen.opset))
    return path
