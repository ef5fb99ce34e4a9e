"""Show the training images of a config: ``mmcare browse CONFIG``, with MMDetection's options."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...runs import build_dataset, check_inputs, dense_task_of, explain_config_faults
from .. import config_parser, has_display, read_config

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args() -> Namespace:
    parser = config_parser("Show the augmented training images as the model gets them, with their annotations.")
    parser.add_argument("--output-dir", type=Path, help="folder to write the pictures to, with the images' names")
    parser.add_argument("--not-show", action="store_true", help="do not open a window")
    parser.add_argument("--show-interval", type=float, default=2, help="seconds to show each picture (default: 2)")
    parser.add_argument("--number", type=int, help="number of images, starting with the first (default: all)")
    args = parser.parse_args()
    if args.number is not None and args.number < 1:
        parser.error(f"--number must be at least 1, not {args.number}")
    return args


def main() -> None:
    args = parse_args()
    check_outlet(args)
    cfg = read_config(args, parts=("train_dataloader", "visualizer"))
    dense_task_of(cfg)
    check_inputs(cfg, splits=("train",), weights=False)
    browse(cfg, args)


def check_outlet(args: Namespace) -> None:
    """Check that the pictures can be shown or written."""
    if args.not_show and not args.output_dir:
        raise UserError("--not-show without --output-dir leaves nothing to do: add --output-dir, or omit --not-show")
    if not (args.not_show or has_display()):
        raise UserError("there is no display to show pictures on: write them with --not-show --output-dir FOLDER")
    if args.output_dir:
        try:
            args.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {args.output_dir} cannot be created: {error.strerror}") from error


def browse(cfg: Config, args: Namespace) -> None:
    from mmengine.registry import VISUALIZERS, init_default_scope
    from mmengine.utils import track_iter_progress

    init_default_scope(cfg.default_scope)
    with explain_config_faults(cfg, splits=("train",)):
        dataset = build_dataset(cfg)
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None))  # do not write to a log
    visualizer.dataset_meta = dataset.metainfo
    number = min(args.number or len(dataset), len(dataset))
    shown: set[str] = set()
    for index in track_iter_progress((range(number), number)):
        item = dataset[index]
        name = Path(item["data_samples"].img_path).name
        if name in shown:  # another folder has a picture of this name
            name = f"{index}_{name}"
        shown.add(name)
        visualizer.add_datasample(
            name,
            item["inputs"].flip(0).permute(1, 2, 0).contiguous().numpy(),  # images are loaded as BGR
            drawable(item["data_samples"]),
            draw_pred=False,
            show=not args.not_show,
            wait_time=args.show_interval,
            out_file=str(args.output_dir / name) if args.output_dir else None,
        )


def drawable(sample: Any) -> Any:
    """Return the sample with boxes as a tensor and masks as an array, as MMDetection's visualizer requires."""
    instances = getattr(sample, "gt_instances", None)
    if instances is not None:
        if hasattr(instances.get("bboxes"), "tensor"):
            instances.bboxes = instances.bboxes.tensor
        if "masks" in instances:
            instances.masks = instances.masks.to_ndarray().astype(bool)
    return sample
