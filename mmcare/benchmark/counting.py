"""What a model costs: built from the name that a command line gives, its parameters and multiply-accumulates counted.

MMEngine and torch are imported inside the functions, as in :mod:`mmcare.cli`.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..runs import load_config, task_of

if TYPE_CHECKING:
    from torch import nn

SHAPES = {"detection": (800, 1333), "segmentation": (512, 512), "backbone": (512, 512)}
"""The usual height and width of an image."""

DENSE_HEADS = ("rpn_head", "bbox_head", "decode_head", "auxiliary_head")


class _Shape(argparse.Action):
    def __call__(self, parser, namespace, sides, option_string=None) -> None:
        if len(sides) > 2 or min(sides) < 1:
            parser.error(f"--shape takes one or two sides of an image, in pixels, not {' '.join(map(str, sides))}")
        namespace.shape = (sides[0], sides[-1])


def add_shape(parser: argparse._ActionsContainer) -> None:
    """Adds ``--shape``, which gives the height and width of an image, and None where it is left out."""
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        action=_Shape,
        metavar="SIDE",
        help="height and width of the image, or one number for both (default: 800 1333 in detection, else 512 512)",
    )


def build(name: str, cfg_options: dict[str, Any] | None = None) -> tuple[nn.Module, tuple[int, int]]:
    """The model that the command line names, in eval mode, and the usual shape of an image for it.

    Args:
        name: a config file, or a bare backbone as ``TYPE:ARCH``, ``TYPE:ARCH,KEY=VALUE`` or ``TYPE:KEY=VALUE``.
        cfg_options: settings of the config to change, as ``--cfg-options`` has them.

    Raises:
        UserError: there is no such config or backbone, it cannot be built, or it has no settings to change.
    """
    from mmengine.registry import MODELS, init_default_scope

    if name.endswith(".py"):
        cfg = load_config(name, parts=("model",), cfg_options=cfg_options)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        model.eval()  # not in one expression, as some frameworks' train() returns nothing
        return model, SHAPES[task_of(cfg)]

    if cfg_options:
        raise UserError(f"--cfg-options changes a config, which {name} is not: give one, or leave the option out")
    kind, arguments = _arguments(name)
    try:
        found = MODELS.get(kind)
    except ImportError as error:  # of an mm package that is not installed
        raise UserError(f"{kind} cannot be had: {error}") from error
    if found is None:
        raise UserError(f"{name} is neither a config (a .py file) nor a backbone: give one such as mmcare.CARE:s1")
    try:
        backbone = MODELS.build(dict(arguments, type=kind))
    except TypeError as error:
        raise UserError(f"{name} is not a backbone that an arch alone describes: give a config ({error})") from error
    backbone.eval()
    return backbone, SHAPES["backbone"]


def _arguments(name: str) -> tuple[str, dict[str, Any]]:
    """The type and the arguments in ``TYPE:ARCH``, ``TYPE:ARCH,KEY=VALUE`` or ``TYPE:KEY=VALUE``."""
    kind, colon, rest = name.partition(":")
    arguments = {}
    for number, part in enumerate(rest.split(",") if colon else ()):
        key, equals, value = part.partition("=")
        if not equals and number == 0:
            arguments["arch"] = part
            continue
        if not equals or not key.isidentifier():
            raise UserError(f"{name} has {part!r} where KEY=VALUE is wanted: give such as mmcare.CARE:s1,with_cp=True")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return kind, arguments


def padded_shape(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The size that a detector's preprocessor pads an image of this size to."""
    divisor = getattr(getattr(model, "data_preprocessor", None), "pad_size_divisor", 1)
    return (-(-height // divisor) * divisor, -(-width // divisor) * divisor)


def image_channels(backbone: nn.Module) -> int:
    """The channels of the images that a backbone takes: its first convolution's."""
    from torch.nn import Conv2d

    return next((module.in_channels for module in backbone.modules() if isinstance(module, Conv2d)), 3)


def count(model: nn.Module, height: int, width: int) -> list[tuple[str, int, int]]:
    """Counts a model's parameters and its MACs for one image.

    The tensors are fake ones, with shapes and no values: nothing is computed, so that size costs neither time nor
    memory.

    Args:
        model: a detector or a segmentor with a backbone, perhaps a neck, and heads; or a backbone.
        height, width: of the image in pixels, before the preprocessor's padding.

    Returns:
        (name, parameters, MACs) of each part, and then of the whole.

    Raises:
        UserError: the model has parts that no image's way leads through here.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    rows = []
    counted = set()

    def measure(name: str, part: nn.Module, maps: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            out = part(maps)
        parameters = {id(parameter): parameter.numel() for parameter in part.parameters()}
        counted.update(parameters)
        # The counter has two operations for each multiply-accumulate.
        rows.append((name, sum(parameters.values()), counter.get_total_flops() // 2))
        return out

    backbone = getattr(model, "backbone", model)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.empty(1, image_channels(backbone), *padded_shape(model, height, width))
        maps = measure("backbone", backbone, image)
        if getattr(model, "neck", None) is not None:
            maps = measure("neck", model.neck, maps)
        for name in DENSE_HEADS:
            head = getattr(model, name, None)
            if head is not None and not isinstance(head, torch.nn.ModuleList):
                measure(name, head, maps)
        for name, head, shape in roi_heads(model):
            measure(name, head, torch.empty(shape))

    uncounted = {name.partition(".")[0] for name, parameter in model.named_parameters() if id(parameter) not in counted}
    if uncounted:
        raise UserError(
            f"this tool cannot count {', '.join(sorted(uncounted))} of a {type(model).__name__}: it knows backbones, "
            "necks, dense heads and the RoI heads of Faster and Mask R-CNN"
        )
    if len(rows) > 1:
        rows.append(("whole model", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return rows


def roi_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, module and input shape of a two-stage detector's heads, for as many regions as its config lets pass."""
    limits = {"bbox": "rpn", "mask": "rcnn"}
    for kind, before in limits.items():
        roi_head = getattr(model, "roi_head", None)
        extractor = getattr(roi_head, f"{kind}_roi_extractor", None)
        if hasattr(extractor, "roi_layers"):  # a cascade has a list of extractors
            regions = model.test_cfg[before].max_per_img
            shape = (regions, extractor.out_channels, *extractor.roi_layers[0].output_size)
            yield f"roi_head.{kind}_head", getattr(roi_head, f"{kind}_head"), shape
