"""Parameter and multiply-accumulate (MAC) counts of a model, without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError

DENSE_HEADS = ("rpn_head", "bbox_head", "decode_head", "auxiliary_head", "head")


def padded_shape(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Return the size to which a detector's preprocessor pads an image of this size."""
    divisor = getattr(getattr(model, "data_preprocessor", None), "pad_size_divisor", 1)
    return (-(-height // divisor) * divisor, -(-width // divisor) * divisor)


def image_channels(backbone: nn.Module) -> int:
    """Return the number of image channels of a backbone, read from its first convolution."""
    return next((module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)), 3)


def count(model: nn.Module, height: int, width: int) -> list[tuple[str, int, int]]:
    """Count a model's parameters and its MACs for one image.

    A copy runs on the meta device, whose tensors have shapes but no values, so even large images cost neither time nor
    memory.

    Args:
        model: a backbone, or a detector, segmentor or classifier with a backbone, an optional neck, and heads.
        height, width: size of the image in pixels, before the preprocessor's padding.

    Returns:
        (name, parameters, MACs) of each part, and then of the whole model.

    Raises:
        UserError: the model has parts that cannot be counted.
    """
    model = copy.deepcopy(model).to("meta")
    rows = []
    counted = set()

    def measure(name: str, part: nn.Module, maps: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            out = part(maps)
        parameters = {id(parameter): parameter.numel() for parameter in part.parameters()}
        counted.update(parameters)
        # The counter counts two operations for each multiply-accumulate.
        rows.append((name, sum(parameters.values()), counter.get_total_flops() // 2))
        return out

    backbone = getattr(model, "backbone", model)
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, image_channels(backbone), *padded_shape(model, height, width))
        maps = measure("backbone", backbone, image)
        if getattr(model, "neck", None) is not None:
            maps = measure("neck", model.neck, maps)
        for name in DENSE_HEADS:
            head = getattr(model, name, None)
            if head is not None and not isinstance(head, nn.ModuleList):
                measure(name, head, maps)
        for name, head, shape in _roi_heads(model):
            measure(name, head, torch.empty(shape))

    uncounted = {name.partition(".")[0] for name, parameter in model.named_parameters() if id(parameter) not in counted}
    if uncounted:
        raise UserError(
            f"{', '.join(sorted(uncounted))} of a {type(model).__name__} cannot be counted: give a model with only "
            "a backbone, a neck, dense heads and the RoI heads of Faster and Mask R-CNN"
        )
    if len(rows) > 1:
        rows.append(("whole model", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return rows


def _roi_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Yield name, module and input shape of a two-stage detector's heads, for as many regions as its config allows.

    The shape is (regions, channels, height, width).
    """
    limits = {"bbox": "rpn", "mask": "rcnn"}
    for kind, before in limits.items():
        roi_head = getattr(model, "roi_head", None)
        extractor = getattr(roi_head, f"{kind}_roi_extractor", None)
        if hasattr(extractor, "roi_layers"):  # a cascade has a list of extractors
            regions = model.test_cfg[before].max_per_img
            shape = (regions, extractor.out_channels, *extractor.roi_layers[0].output_size)
            yield f"roi_head.{kind}_head", getattr(roi_head, f"{kind}_head"), shape
