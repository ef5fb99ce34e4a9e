"""Test a detector, segmentor or classifier: ``mmcare test CONFIG CHECKPOINT``, with MMDetection's options."""

from __future__ import annotations

from argparse import Namespace
from copy import deepcopy
from typing import TYPE_CHECKING

from ...data import innermost_datasets, type_name
from ...errors import UserError
from ...export import check_classes, check_fit, is_exported
from ...runs import build_runner, check_checkpoint, check_inputs, explain_config_faults, task_of
from .. import read_run_config, run_parser

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

    from ...runtime import Certificate


def parse_args() -> Namespace:
    parser = run_parser("Test a detector, segmentor or classifier.")
    parser.add_argument(
        "checkpoint", help="checkpoint file, or its http(s) address; or a file that mmcare export wrote"
    )
    parser.add_argument(
        "--out",
        help="write the predictions to this .pkl file (detection, classification) or as label maps to this folder "
        "(segmentation)",
    )
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument(
        "--show-dir",
        help="folder for pictures of the predictions; in detection below <work folder>/<start time>",
    )
    parser.add_argument("--wait-time", type=float, default=2, help="seconds to show each picture (default: 2)")
    parser.add_argument("--tta", action="store_true", help="use test-time augmentation")
    parser.add_argument("--reparameterize", action="store_true", help="test the fast form of the model")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    exported = is_exported(args.checkpoint)
    if exported:
        refuse_options(args)
    cfg = read_run_config(args, parts=("model", "test_dataloader", "test_cfg", "test_evaluator"))
    task = task_of(cfg)
    if args.show or args.show_dir:
        visualize(cfg, args, task)
    if args.tta:
        augment(cfg, task)
    if args.out and task != "segmentation" and not args.out.endswith((".pkl", ".pickle")):
        raise UserError(f"--out writes a pickle file in {task}: give a name that ends in .pkl, not {args.out}")
    if args.out and task == "segmentation":
        write_label_maps(cfg, args.out)
    if args.reparameterize:
        switch_to_fast_form(cfg)
    # It would make MMEngine read the training data.
    remove_hooks(cfg, "EarlyStoppingHook")
    if exported:
        certificate = switch_to_file(cfg, args.checkpoint)
    else:
        check_checkpoint(args.checkpoint)
        cfg.load_from = args.checkpoint
    cfg.resume = False
    check_inputs(cfg, splits=("test",), weights=False)  # the weights come from the checkpoint
    with explain_config_faults(cfg, splits=("test",)):
        runner = build_runner(cfg, require_all=True)
        if exported:
            classes = tuple(runner.test_loop.dataloader.dataset.metainfo["classes"])
            check_classes(certificate.classes, classes, args.checkpoint)
        if args.out and task != "segmentation":
            dump_predictions(runner, args.out, task)
        runner.test()


def refuse_options(args: Namespace) -> None:
    """Raise UserError if there are options that an exported file has no use for."""
    for option in ("tta", "reparameterize"):
        if getattr(args, option):
            raise UserError(f"--{option} is for a model in PyTorch, and {args.checkpoint} is an exported file: omit it")
    if args.launcher != "none":
        raise UserError(f"{args.checkpoint} is an exported file, which one process tests: omit --launcher")


def switch_to_file(cfg: Config, path: str) -> Certificate:
    """Replace a config's model with an exported file of it, and return the certificate of that.

    Raises:
        UserError: the file is of another model.
        FileError: the file or its runtime cannot be used.
    """
    from ...runtime import open_file

    certificate = open_file(path).certificate
    check_fit(certificate, cfg, path)
    cfg.model = dict(type="mmcare.ExportedModel", file=path)
    cfg.load_from = None
    cfg.compile = False
    remove_hooks(cfg, "EMAHook", "ReparameterizeHook")  # they are for weights
    return certificate


def remove_hooks(cfg: Config, *names: str) -> None:
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or [] if type_name(hook) not in names]


def visualize(cfg: Config, args: Namespace, task: str) -> None:
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if task == "classification":
        cfg.default_hooks.visualization = dict(
            type="VisualizationHook", enable=True, interval=1, show=args.show, out_dir=args.show_dir
        )
        return
    detection = task == "detection"
    if not (hook and cfg.get("visualizer")):
        kind = "Det" if detection else "Seg"
        raise UserError(
            f"--show and --show-dir need {kind}LocalVisualizer as the visualizer of {cfg.filename}, and "
            f"visualization=dict(type='{kind}VisualizationHook') among its default_hooks"
        )
    hook.draw = True
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir and detection:
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir
    if not detection:
        hook.setdefault("interval", 1)  # MMSegmentation draws only every 50th image by default


def augment(cfg: Config, task: str) -> None:
    """Wrap the model in a TTA model, which merges the predictions for augmented copies of an image."""
    if task == "detection":
        set_default_tta(cfg)
    elif not (cfg.get("tta_model") and cfg.get("tta_pipeline")):
        raise UserError(f"--tta needs tta_model and tta_pipeline in {task}, and {cfg.filename} lacks them")
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline


def set_default_tta(cfg: Config) -> None:
    """Set MMDetection's default TTA: the image and its mirror image, merged by non-maximum suppression."""
    if (cfg.model.get("roi_head") or {}).get("mask_head"):
        raise UserError(f"--tta: MMDetection cannot merge masks, which the model of {cfg.filename} predicts")
    if "tta_model" not in cfg:
        nms = dict(type="nms", iou_threshold=0.5)
        cfg.tta_model = dict(type="DetTTAModel", tta_cfg=dict(nms=nms, max_per_img=100))
    if "tta_pipeline" not in cfg:
        flip = [dict(type="RandomFlip", prob=1.0), dict(type="RandomFlip", prob=0.0)]
        meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
        pack = [dict(type="PackDetInputs", meta_keys=meta_keys)]
        pipeline = deepcopy(next(innermost_datasets(cfg.test_dataloader.dataset)).pipeline)
        cfg.tta_pipeline = [*pipeline[:-1], dict(type="TestTimeAug", transforms=[flip, pack])]


def switch_to_fast_form(cfg: Config) -> None:
    hook = dict(type="mmcare.ReparameterizeHook")
    # A config that an earlier test wrote to its work folder already has the hook.
    cfg.custom_hooks = [*(other for other in cfg.get("custom_hooks") or [] if other["type"] != hook["type"]), hook]


def write_label_maps(cfg: Config, folder: str) -> None:
    evaluator = cfg.test_evaluator
    for metric in evaluator if isinstance(evaluator, list) else [evaluator]:
        metric.output_dir = folder
        metric.keep_results = True


def dump_predictions(runner: Runner, path: str, task: str) -> None:
    from mmengine.registry import METRICS

    kind = "mmdet.DumpDetResults" if task == "detection" else "mmengine.DumpResults"
    runner.test_evaluator.metrics.append(METRICS.build(dict(type=kind, out_file_path=path)))
