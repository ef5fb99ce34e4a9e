"""Measure prediction for prediction.md: ``python docs/prediction.py memory`` and ``… speed FOLDER``.

``memory`` predicts a video of 2,000 frames and a folder of 5,000 pictures as the command line does, and prints the
resident memory of the process and of its workers at the start, in the middle and at the end.

``speed`` predicts the pictures in a folder with RetinaNet on CARE s1 at 512×512 (random weights), and compares pictures
per second with the model's own on the same pictures ready in memory, taking turns; and with mmdet's DetInferencer, with
the same model in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.registry import MODELS, DefaultScope

import mmcare
from mmcare.inference import Files, pictures_in

SIDE = 512
TINY = dict(depths=(1, 1, 1, 1), memory_channels=(8, 8, 16, 32), ratios=((1, 1),) * 4)


def predictor(folder: Path, side: int, tiny: bool) -> mmcare.Predictor:
    """Return a Predictor of RetinaNet on CARE s1, or on a tiny network, with random weights."""
    cfg = mmcare.get_config("detection/retinanet_care_s1")
    cfg.model.backbone.init_cfg = None
    if tiny:
        cfg.model.backbone.arch = TINY
        cfg.model.neck.update(in_channels=[32, 32, 64, 128], out_channels=32)
        cfg.model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.update(scale=(side, side), keep_ratio=False)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save({"state_dict": model.state_dict()}, folder / "random.pth")
    return mmcare.Predictor(cfg, folder / "random.pth")


def resident() -> float:
    """Return the resident memory of this process and its children in MiB."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (os.getpid(), *children)]
    return sum(pages) * resource.getpagesize() / 2**20


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory(args: argparse.Namespace, folder: Path) -> None:
    predict = predictor(folder, 64, tiny=True)
    noise = np.random.RandomState(0).randint(0, 255, (8, 480, 640, 3), np.uint8)
    video = folder / "clip.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 25, (640, 480))
    for number in range(2000):
        writer.write(noise[number % 8])
    writer.release()
    pictures = folder / "pictures"
    pictures.mkdir()
    encoded = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in noise]
    for number in range(5000):
        (pictures / f"{number}.jpg").write_bytes(encoded[number % 8])
    for images, total in ((video, 2000), (pictures, 5000)):
        out = folder / f"out_{total}"
        out.mkdir()
        sizes = []
        sources = [str(images)] if images == video else pictures_in(images)
        with Files(out, sources, predict.classes).opened() as add:
            for done, prediction in enumerate(predict(sources), 1):
                add(prediction, prediction.draw())
                if done in (100, total // 4, total // 2, total * 3 // 4, total):
                    sizes.append(f"{done}: {resident():.0f} MiB")
        print(f"{images.name}, {done} pictures: {', '.join(sizes)}", flush=True)


def speed(args: argparse.Namespace, folder: Path) -> None:
    from mmdet.apis import DetInferencer

    predict = predictor(folder, SIDE, tiny=False)
    mmcare.keep_freed_memory()
    paths = pictures_in(args.folder)[: args.pictures]
    batches: list[dict] = []
    compute = predict.model.test_step
    predict.model.test_step = lambda data: (batches.append(data), compute(data))[1]
    for _ in predict(paths, args.batch):
        pass
    predict.model.test_step = compute
    batches = [{key: list(value) for key, value in data.items()} for data in batches]

    with DefaultScope.overwrite_default_scope("mmdet"):
        cfg = mmcare.get_config("detection/retinanet_care_s1")
        for step in cfg.test_dataloader.dataset.pipeline:
            if step.type == "Resize":
                step.update(scale=(SIDE, SIDE), keep_ratio=False)
        inferencer = DetInferencer(cfg, show_progress=False, device=str(predict.device))
    inferencer.model = predict.model

    def of_model() -> None:
        with torch.no_grad():
            for data in batches:
                predict.model.test_step(data)

    def of_predictor() -> None:
        for _ in predict(paths, args.batch):
            pass

    def of_inferencer() -> None:
        inferencer(paths, batch_size=args.batch, no_save_vis=True, no_save_pred=True)

    clocks: dict[str, Callable[[], None]] = {
        "model alone": of_model,
        "Predictor": of_predictor,
        "DetInferencer": of_inferencer,
    }
    rates: dict[str, list[float]] = {name: [] for name in clocks}
    costs: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(args.rounds):
        for name, clock in clocks.items():
            start, start_cpu = time.perf_counter(), cpu_seconds()
            clock()
            rates[name].append(len(paths) / (time.perf_counter() - start))
            costs[name].append((cpu_seconds() - start_cpu) / len(paths))
            print(
                f"{name:14} {rates[name][-1]:6.2f} pictures/s, {1000 * costs[name][-1]:.0f} ms of CPU time", flush=True
            )
    alone = statistics.median(rates["model alone"])
    print(f"{len(paths)} pictures, batches of {args.batch}, {args.rounds} rounds, {torch.get_num_threads()} threads")
    for name, found in rates.items():
        shares = statistics.median(mine / own for mine, own in zip(found, rates["model alone"], strict=True))
        print(
            f"{name:14} {statistics.median(found):6.2f} pictures/s ({min(found):.2f}–{max(found):.2f}), "
            f"{statistics.median(found) / alone:.3f} of the model's, {shares:.3f} by rounds; "
            f"{1000 * statistics.median(costs[name]):.0f} ms of CPU time a picture"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("memory").set_defaults(measure=memory)
    speeds = commands.add_parser("speed")
    speeds.set_defaults(measure=speed)
    speeds.add_argument("folder", help="a folder of pictures")
    speeds.add_argument("--pictures", type=int, default=32)
    speeds.add_argument("--batch", type=int, default=8)
    speeds.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        arguments.measure(arguments, Path(name))
