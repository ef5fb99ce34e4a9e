"""The way from a config and a checkpoint to a file."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import clear_leftovers, write_files, write_folder
from ..runs import Evaluation, load_config, missing_inputs
from ..stack import check_stack
from .fitting import check_classes
from .quantization import Quantized, SlowerWarning
from .targets import PARTS, check_options

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..runtime import Certificate, ExportedFile

SHAPES = {"detection": (800, 1333), "segmentation": (512, 512)}
"""The largest height and width of a wide picture that is measured by default; see :func:`export`."""


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
    metric: bool = False,
    metric_images: int | None = None,
) -> Path:
    """Write a trained model as a file for another runtime, with a certificate of what was measured.

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
        shape: height and width of the images; by default both the longer side of the test pipeline's pictures, at
            most 1333 pixels for detectors and 512 for segmentors.
        batch: number of images.
        dynamic: whether the file takes any number and size of images, from 32×32, instead.
        opset: version of ONNX's operators; by default the target's.
        quantize: smaller numbers, "fp16" or "int8", where the target has them; see docs/quantization.md.
        calibration: a folder of pictures to take the ranges of int8 from.
        max_images: most pictures that are taken from it; 100 by default.
        overwrite: replace a file that is there already.
        metric: measure the metric of the model and of the file on the config's test data, too; only a whole model has
            one.
        metric_images: most images for it; all by default.

    Returns:
        The path. Beside any file but ONNX's there is its certificate, ``<path>.json``.

    Raises:
        UserError: the arguments cannot be used, a package or the test data is missing, the file's outputs or metric
            are further from the trained model's than is allowed, or the file cannot be written.
        FileError: the runtime refuses the file.

    Warns:
        SlowerWarning: the file has smaller numbers and is not faster for it on this machine.
    """
    chosen = check_options(target, part, opset, quantize, calibration)
    path = Path(path)
    if path.suffix.lower() != chosen.ending:
        raise UserError(f"{path} does not end in {chosen.ending}: give another name with -o")
    if path.is_dir() and not chosen.folder:
        raise UserError(f"{path} is a folder: give another name with -o")
    _check_free([path.with_suffix(ending) for ending in (chosen.ending, *chosen.beside)], overwrite)
    if dynamic and not chosen.dynamic:
        raise UserError(f"{target} files take images of one size: give --shape and --batch instead of --dynamic")
    if dynamic and (shape or batch != 1):
        raise UserError("a dynamic file takes any number and size of images: omit --shape and --batch, or --dynamic")
    if batch < 1:
        raise UserError(f"a file takes at least 1 image at a time, not {batch}: give another --batch")
    check_stack()
    from mmengine.config import Config

    from ..inference import Predictor
    from ..runtime import ENDINGS, NOT_RUN, attach_certificate
    from .certification import describe, measure, resizing_of, say, usual_shape
    from .exported_model import ExportedModel, check_size
    from .preparation import prepare
    from .quantization.calibration import DEFAULT_IMAGES, read_pictures
    from .quantization.report import sensitivity_plot, sensitivity_table

    cfg = config if isinstance(config, Config) else load_config(str(config), ("model",))
    runs = chosen.ending in ENDINGS
    metric = metric and part == PARTS[0] and runs
    if metric:
        _check_data(cfg)
    model = copy.deepcopy(cfg.model)
    trained = Predictor(cfg, checkpoint, device="cpu", fast=False)
    usual = usual_shape(resizing_of(cfg), SHAPES[trained.task])
    # A file of one size takes wide and upright pictures.
    shape = shape or (usual if dynamic else (max(usual), max(usual)))
    evaluation = _evaluation(cfg, metric_images, trained.classes) if metric else None
    if evaluation is not None and not dynamic:  # told now, as conversion takes its time
        for size in evaluation.sizes():
            check_size(size, shape, str(path))
    # Each form is made of a copy, as the trained model is measured, too.
    ready = partial(prepare, task=trained.task, part=part, shape=shape, batch=batch, dynamic=dynamic)
    reference = ready(copy.deepcopy(trained.model), form="plain")
    prepared = ready(copy.deepcopy(trained.model), form=chosen.form, detection_operators=chosen.detection_operators)

    def certify(made: Quantized) -> Certificate:
        operators = chosen.load().operators(made.content)
        return describe(trained, cfg, model, reference, prepared, target, chosen, part, made.record, operators)

    def score(content: bytes | Mapping[str, bytes]) -> dict[str, float]:
        certificate = certify(Quantized(content, {"kind": quantize}))
        with _opened(certificate, _by_name(content, path, chosen.folder), path.name) as file:
            return evaluation(ExportedModel(file).test_step, f"a file in {quantize}")

    say(f"converting the {part} to {target}")
    if quantize is None:
        made = Quantized(chosen.load().convert(prepared, opset or chosen.opset), record=None)
    else:
        pictures = None
        if calibration is not None:
            most = DEFAULT_IMAGES if max_images is None else max_images
            pictures = read_pictures(calibration, trained.transforms, prepared, most)
        quantizer = chosen.quantizers[quantize].load()
        made = quantizer.quantize(prepared, opset or chosen.opset, pictures, score if metric else None)
    files = _by_name(made.content, path, chosen.folder)
    certificate = certify(made)
    if runs:
        with _opened(certificate, files, path.name) as file:
            certificate = measure(certificate, file, reference, trained, shape, evaluation)
    else:
        say(f"there is no runtime for {target} here, so nothing is measured: the certificate says {NOT_RUN!r}")
        certificate = replace(certificate, measured=replace(certificate.measured, note=NOT_RUN))
    final = {path.parent / name: content for name, content in attach_certificate(certificate, files, path.name).items()}
    if made.record and "sensitivity" in made.record:
        say(sensitivity_table(made.record))
        final = {path.with_name(f"{path.stem}_sensitivity.png"): sensitivity_plot(made.record), **final}
    _check_free(final, overwrite)
    for each in final:
        clear_leftovers(each.parent, of=each.name)
    if chosen.folder:
        inside = {name: final.pop(path.parent / name) for name in files}
        write_folder(path, {name.removeprefix(f"{path.name}/"): content for name, content in inside.items()})
    write_files(final)
    if made.warning:
        warnings.warn(made.warning, SlowerWarning, stacklevel=2)
    return path


@contextmanager
def _opened(certificate: Certificate, files: Mapping[str, bytes], name: str) -> Iterator[ExportedFile]:
    """Open a file, of which nothing is measured yet, with the threads that torch has."""
    import torch

    from ..runtime import attach_certificate, open_file

    with TemporaryDirectory(prefix="mmcare-export-") as folder:
        content = attach_certificate(certificate, files, name)
        write_files({Path(folder) / each: value for each, value in content.items()})
        yield open_file(Path(folder) / name, torch.get_num_threads())


def _check_free(paths: Iterable[Path], overwrite: bool) -> None:
    taken = [path for path in paths if path.exists()]
    if taken and not overwrite:
        raise UserError(f"{taken[0]} exists: add --overwrite to replace it, or give another name with -o")


def _check_data(cfg: Config) -> None:
    """Raise UserError if the config's test data is not there."""
    absent = [key for key in ("test_dataloader", "test_evaluator") if not cfg.get(key)]
    missing = missing_inputs(cfg, splits=("test",))
    if absent or missing:
        fault = f"{cfg.filename} has no {absent[0]}" if absent else f"{missing[0]} is missing"
        raise UserError(
            f"the file's metric is measured on the config's test data, and {fault}: add it, use other data with "
            "--data FOLDER or generated data with --sample, or measure none with --no-metric"
        )


def _evaluation(cfg: Config, most: int | None, classes: tuple[str, ...]) -> Evaluation:
    if most is not None and most < 1:
        raise UserError(f"a metric needs at least 1 image, not {most}: give another --metric-images, or --no-metric")
    evaluation = Evaluation(cfg, most)
    check_classes(classes, evaluation.classes, "the checkpoint", or_else=", or --no-metric")
    return evaluation


def _by_name(content: bytes | Mapping[str, bytes], path: Path, folder: bool) -> dict[str, bytes]:
    """Return the content of each file of a target by its name; the one of the path comes last."""
    files = content if isinstance(content, Mapping) else {path.suffix: content}
    if folder:
        return {f"{path.name}/{name}": files[name] for name in files}
    named = {path.with_suffix(ending).name: files[ending] for ending in files}
    return {name: named[name] for name in sorted(named, key=path.name.__eq__)}
