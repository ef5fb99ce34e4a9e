"""What an export measures of a file beside the trained model, and the certificate that says so."""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, metadata
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..benchmark import interleaved, processor, timed_again
from ..data import innermost_datasets, remove_pretrained, type_name
from ..errors import UserError
from ..runs import plain_config
from ..runtime import (
    DETECTIONS,
    Certificate,
    ExportedFile,
    Input,
    Latency,
    Measured,
    Metric,
    Normalization,
    Output,
    OutputError,
    Resizing,
    compare_probe,
    draw_probe,
    record_probe,
)
from .exported_model import ExportedModel, padded
from .preparation import INPUT, Prepared
from .targets import Target

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..inference import Predictor
    from ..runs import Evaluation

METRIC_TOLERANCES = {None: 0.002, "fp16": 0.01, "int8": 0.02}
"""How far a file's metric may be from the trained model's, by its numbers; with smaller ones, how much lower."""
TOLERANCES = {None: (2e-4, 1e-3), "fp16": (0.05, 0.05)}
"""The largest error of boxes, scores and maps, and of masks and label maps; see :mod:`mmcare.runtime.probe`."""
ROUNDS = (3, 10)
"""The fewest and the most timed calls."""
PICTURES = 3
"""The number of drawn pictures on which errors are measured."""
NUDGE, NUDGES = 1e-3, 3
"""The changes of pixels, from 0 to 255, that are about as small as rounding, and must not decide what a model finds."""
SECONDS = 20
"""For which both are timed, if these are not too few calls."""
_STEPS = ("LoadImageFromFile", "Resize", "ResizeToMultiple", "LoadAnnotations", "PackDetInputs", "PackSegInputs")
"""Transforms of a test pipeline that a certificate can describe."""


def say(step: str) -> None:
    """Show which step of an export begins."""
    print(step, file=sys.stderr, flush=True)


# -- what is known before anything is measured -------------------------------------------------------------------------


def describe(
    trained: Predictor,
    cfg: Config,
    model: Mapping[str, Any],
    reference: Prepared,
    prepared: Prepared,
    name: str,
    target: Target,
    part: str,
    quantization: Mapping[str, Any] | None,
    operators: Mapping[str, int],
) -> Certificate:
    """Return the certificate of a file of which nothing was measured yet.

    Args:
        trained: the trained model.
        cfg: its config.
        model: the part of it for the model, from before that was built, as MMDetection writes into it.
        reference: its plain form.
        prepared: what was converted.
        name, target: what it was converted to.
        part: one of :data:`mmcare.export.PARTS`.
        quantization: what was done for smaller numbers.
        operators: how often the file has each.

    Raises:
        UserError: the test pipeline does something that a certificate cannot describe.
    """
    batch, _, height, width = (None,) * 4 if prepared.dynamic else prepared.images.shape
    module = reference.module
    mean, std = (getattr(module, name).flatten().tolist() for name in ("mean", "std"))
    if not module.is_rgb:
        mean, std = mean[::-1], std[::-1]
    model = copy.deepcopy(dict(model))
    remove_pretrained(model)
    return Certificate(
        format=name,
        part=part,
        form=prepared.form,
        quantization=None if quantization is None else dict(quantization),
        task=trained.task,
        classes=trained.classes,
        palette=trained.palette,
        input=Input(INPUT, (batch, 3, height, width)),
        normalization=Normalization(tuple(mean), tuple(std)),
        resizing=resizing_of(cfg),
        outputs=_outputs(reference),
        thresholds=plain_config(getattr(trained.model, "test_cfg", None) or {}),
        config=plain_config(model),
        versions=_versions(cfg, target),
        weights_sha256=weights_hash(trained.model),
        operators=dict(operators),
        measured=Measured(metric=None, errors={}, latency=None, probe=None),
    )


def resizing_of(cfg: Config) -> Resizing:
    """Return how the test pipeline of a config resizes pictures.

    Raises:
        UserError: it does something else, too.
    """
    dataset = next(innermost_datasets((cfg.get("test_dataloader") or {}).get("dataset")), {})
    scale, keep_ratio, multiple = None, True, None
    for step in dataset.get("pipeline") or cfg.get("test_pipeline") or []:
        kind = type_name(step)
        fixed = kind == "Resize" and step.get("scale") is None
        if kind not in _STEPS or fixed or step.get("interpolation", "bilinear") != "bilinear":
            raise UserError(
                f"the test pipeline of {cfg.filename} has {kind}"
                f"{' without a scale' * fixed}, which no certificate describes: use Resize with a scale and "
                "ResizeToMultiple, both bilinear"
            )
        if kind == "Resize":
            sides = step["scale"]
            scale = (sides, sides) if isinstance(sides, int) else tuple(sides)
            keep_ratio = bool(step.get("keep_ratio", False))
        elif kind == "ResizeToMultiple":
            multiple = step.get("size_divisor", 32)
    return Resizing(scale, keep_ratio, multiple)


def usual_shape(resizing: Resizing, largest: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a wide picture after resizing, but no more than ``largest``."""
    if resizing.scale is None:
        return largest
    short, long = sorted(resizing.scale)
    return min(short, largest[0]), min(long, largest[1])


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights: name, type, shape and content of each, in the order of the names."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else b"")
        found.update(str(value.item()).encode() if not value.dim() else b"")
    return found.hexdigest()


def _outputs(reference: Prepared) -> tuple[Output, ...]:
    """Return the outputs; free sizes are those that differ between two inputs."""
    images = reference.images
    inputs = [images[:1, :, :64, :96], images[:2, :, :96, :160]] if reference.dynamic else [images]
    first, last = (run(reference, images.numpy()) for images in (inputs[0], inputs[-1]))
    outputs = []
    for name in reference.outputs:
        shapes = zip(first[name].shape, last[name].shape, strict=True)
        sizes = tuple(size if size == other else None for size, other in shapes)
        outputs.append(Output(name, sizes, str(first[name].dtype)))
    return tuple(outputs)


def _versions(cfg: Config, target: Target) -> dict[str, str]:
    names = ["mmcare", "torch", "mmengine", "mmcv", cfg.default_scope, *target.needs]
    return {name: _version(name) for name in dict.fromkeys(names)}


def _version(package: str) -> str:
    # The mm packages come from either of two distributions, and the name of a distribution may not be the package's.
    version = getattr(import_module(package), "__version__", None)
    return str(version) if version else metadata.version(package.replace("_", "-"))


# -- what is measured --------------------------------------------------------------------------------------------------


def run(prepared: Prepared, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of a prepared model in PyTorch, by name, for images (B, 3, H, W)."""
    with torch.inference_mode():
        values = prepared.module(torch.from_numpy(images))
    return {name: value.numpy() for name, value in zip(prepared.outputs, values, strict=True)}


def measure(
    certificate: Certificate,
    file: ExportedFile,
    reference: Prepared,
    trained: Predictor,
    shape: tuple[int, int],
    evaluation: Evaluation | None,
) -> Certificate:
    """Return a certificate with what is measured of a file beside the trained model.

    Args:
        certificate: without measurements.
        file: the file.
        reference: the plain form of the trained model, from pictures to the same outputs.
        trained: the trained model.
        shape: height and width of the pictures for the errors and the latency; those of the file if it takes one size.
        evaluation: the data for the metric; None for none.

    Raises:
        UserError: the file is further from the trained model than is allowed.
    """
    batch, height, width = (given or usual for given, usual in zip(file.takes, (1, *shape), strict=True))
    numbers = (certificate.quantization or {}).get("kind")
    say(f"comparing the file with the trained model at {height}×{width}")
    errors, probe = compare(file, reference, (batch, 3, height, width), _lowest_score(certificate.thresholds), numbers)
    say("timing both")
    measured = Measured(None, errors, latency(file, reference, (batch, 3, height, width)), probe)
    if evaluation is not None:
        measured = replace(measured, metric=compare_metrics(file, trained, evaluation, numbers))
    return replace(certificate, measured=measured)


def compare(
    file: ExportedFile, reference: Prepared, shape: tuple[int, ...], floor: float, numbers: str | None
) -> tuple[dict[str, OutputError], dict[str, Any]]:
    """Return the largest error of each output on drawn pictures, and the probe of one of them.

    A file for all sizes is compared at a second size and number of images, too.

    Raises:
        UserError: an error is larger than allowed.
    """
    shapes = [shape]
    if None in file.takes:
        shapes.append((shape[0] + 1, 3, max(shape[2] * 3 // 4, 64), max(shape[3] // 2, 64)))
    probes = []
    largest: dict[str, float] = {}
    kinds = {output.name: np.dtype(output.dtype).kind for output in file.certificate.outputs}
    allowed = {name: _tolerance(name, kind, None, 0.0) for name, kind in kinds.items()}
    for each in shapes:
        seen = list(islice(_decided(reference, each, floor, allowed), PICTURES))
        if not seen:
            raise UserError(
                "the trained model finds something else in drawn pictures when they change by less than rounding does, "
                "so the file cannot be compared with it and was not written: train the model, or train it longer"
            )
        for picture in seen:
            for name, error in _errors(picture.probe, picture.wanted, file.run(picture.images)).items():
                largest[name] = max(largest.get(name, 0.0), error)
        outputs = iter([picture.wanted for picture in seen])
        seeds = [picture.seed for picture in seen]
        probes.append(record_probe(lambda _, outputs=outputs: next(outputs), each, floor, seeds))
    errors = {
        name: OutputError(error, _tolerance(name, kinds[name], numbers, error)) for name, error in largest.items()
    }
    for name, error in errors.items():
        if not error.largest <= error.tolerance:
            raise UserError(
                f"the file's {name} is {error.largest:.1e} from the trained model's, and at most {error.tolerance:.0e} "
                "is allowed, so it was not written: give another --format, or report this"
            )
    return errors, probes[0]


@dataclass(frozen=True)
class _Drawn:
    """Drawn pictures, and what the trained model returns for them, whole and reduced."""

    seed: int
    images: np.ndarray
    wanted: dict[str, np.ndarray]
    probe: dict[str, Any]


def _decided(
    reference: Prepared, shape: tuple[int, ...], floor: float, allowed: Mapping[str, float]
) -> Iterator[_Drawn]:
    """Yield drawn pictures with the model's outputs.

    Pictures are left out in which rounding decides what a detector finds, such as of two boxes that overlap just as
    much as suppression allows: no two runtimes agree on these.
    """
    for seed in range(4 * PICTURES):
        images = draw_probe(seed, shape)
        wanted = run(reference, images)
        probe = record_probe(lambda _, wanted=wanted: wanted, shape, floor, seeds=(seed,))
        if probe["detections"] is not None:
            noise = np.random.RandomState(seed).standard_normal((NUDGES, *shape)).astype(np.float32)
            nudged = (run(reference, images + NUDGE * each) for each in noise)
            errors = (_errors(probe, wanted, outputs) for outputs in nudged)
            if not all(error <= allowed[name] for found in errors for name, error in found.items()):
                continue
        yield _Drawn(seed, images, wanted, probe)


def _errors(probe: dict[str, Any], wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the error of each output as :mod:`mmcare.runtime.probe` defines it, of all values instead of some."""
    errors = compare_probe(probe, found)
    for name in errors.keys() & wanted.keys() - set(DETECTIONS):
        old, new = wanted[name], found[name]
        if old.dtype.kind == "f":
            errors[name] = float(np.abs(old - new).max() / max(np.abs(old).max(), 1e-12))
        else:
            errors[name] = float((old != new).mean())
    return errors


def _tolerance(name: str, kind: str, numbers: str | None, error: float) -> float:
    """Return the largest error that is allowed for an output: of masks and label maps a share of the pixels."""
    if numbers == "int8":  # what counts is the metric; on another machine it may be as much again
        return 2 * error + 0.01
    return TOLERANCES[numbers][0 if kind == "f" and name != "masks" else 1]


def _lowest_score(thresholds: Mapping[str, Any]) -> float:
    return float((thresholds.get("rcnn") or thresholds).get("score_thr") or 0)


def latency(file: ExportedFile, reference: Prepared, shape: tuple[int, int, int, int]) -> Latency:
    """Return the medians of calls that took turns, of the trained model's plain form in PyTorch and of the file."""
    images = draw_probe(0, shape)
    calls = [partial(run, reference, images), partial(file.run, images)]
    clocks = [partial(timed_again, call, "cpu") for call in calls]
    fewest, most = ROUNDS
    once = sum(clock() for clock in clocks)
    rounds = min(most, max(fewest, int(SECONDS / (2 * once))))
    pytorch, own = (1000 * float(np.median(times)) for times in interleaved(clocks, rounds, warmup=0))
    return Latency(shape, torch.get_num_threads(), pytorch, own, processor())


def compare_metrics(
    file: ExportedFile, trained: Predictor, evaluation: Evaluation, numbers: str | None
) -> Metric | None:
    """Return the metric of the trained model and of a file on the same images; of masks, where both are measured.

    Raises:
        UserError: an image does not fit the file, or a metric of the file is further from the trained model's than is
            allowed.
    """
    own = evaluation(ExportedModel(file).test_step, "the file")
    pytorch = evaluation(_test_step(trained, file), "the trained model")
    metric, tolerance = None, METRIC_TOLERANCES[numbers]
    for name in pytorch | own:
        metric = Metric(name, evaluation.data, evaluation.images, pytorch.get(name, 0.0), own.get(name, 0.0))
        say(f"{name}: {metric.pytorch:.4f} trained, {metric.file:.4f} in the file")
        loss = metric.pytorch - metric.file
        if (loss if numbers else abs(loss)) > tolerance + 1e-9:
            raise UserError(
                f"the file's {name} is {metric.file:.4f} on {evaluation.images} images, where the trained model has "
                f"{metric.pytorch:.4f}, and at most {tolerance:.3g} between them is allowed, so it was not written: "
                "give another --format or --quantize, or report this"
            )
    if metric is None:
        say("neither finds anything in these images, so there is no metric")
    return metric


def _test_step(trained: Predictor, file: ExportedFile) -> Callable[[dict[str, Any]], list[Any]]:
    """Return the trained model's ``test_step``; images are padded as the file's are if that takes one size."""
    size = file.takes[1:]
    if None in size:
        return torch.no_grad()(trained.model.test_step)
    mean = file.certificate.normalization.mean[::-1]  # the pipeline's images are BGR

    def test_step(batch: dict[str, Any]) -> list[Any]:
        samples = batch["data_samples"]
        originals = [sample.ori_shape[:2] for sample in samples]
        images = []
        for image, sample in zip(batch["inputs"], samples, strict=True):
            _pad(sample, image.shape[1:], size)
            images.append(torch.from_numpy(padded(image.float().numpy(), size, mean, str(file.path))))
        with torch.no_grad():
            samples = trained.model.test_step({**batch, "inputs": images})
        for sample, (height, width) in zip(samples, originals, strict=True):
            sample.set_metainfo({"ori_shape": (height, width)})
            if "pred_instances" in sample:
                sample.pred_instances = _within(sample.pred_instances, height, width)
        return samples

    return test_step


def _pad(sample: Any, inner: Sequence[int], size: Sequence[int]) -> None:
    """Make the metainfo of an image of a size that of the padded one."""
    if "gt_sem_seg" in sample:  # MMSegmentation removes the padding itself
        padding = [0, size[1] - inner[1], 0, size[0] - inner[0]]
        sample.set_metainfo({"img_shape": tuple(size), "pad_shape": tuple(size), "padding_size": padding})
    else:
        across, down = sample.scale_factor
        original = (math.ceil(size[0] / down), math.ceil(size[1] / across))
        sample.set_metainfo({"img_shape": tuple(size), "ori_shape": original})


def _within(found: Any, height: int, width: int) -> Any:
    """Return the detections in the upper left part of a picture, cut off at its border."""
    boxes = found.bboxes.clamp(min=0).minimum(found.bboxes.new_tensor((width, height, width, height)))
    inside = (boxes[:, 2:] > boxes[:, :2]).all(-1)
    found.bboxes = boxes
    if "masks" in found:
        masks = found.pop("masks")[:, :height, :width]
        found.masks = masks
    return found[inside]
