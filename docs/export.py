"""Time the forms of backbones in each runtime beside PyTorch: ``python docs/export.py -o forms.md`` writes a table.

Weights are random. Each form and target is a file of its own. ``--numbers`` adds what OpenVINO computes in bf16, and
with all blocks in int8. Calls take turns, and one session is open at a time, as
the threads of others would wait in a loop. A target whose packages are missing is left out.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from mmengine.model import initialize
from mmengine.registry import MODELS, DefaultScope
from tabulate import tabulate

from mmcare import UserError, get_config
from mmcare.benchmark import count
from mmcare.benchmark.measuring import machine
from mmcare.benchmark.timing import ceiling_product, product_flops
from mmcare.export import TARGETS, check_options
from mmcare.export.forms import FORMS
from mmcare.export.preparation import prepare
from mmcare.runtime import ENDINGS, load_executorch, openvino_core
from mmcare.runtime.sessions import open_session

CONFIGS = ("detection/retinanet_care_s1", "detection/retinanet_casvit_m")
CALLS = 3
CEILING, PYTORCH = ("", "a large matrix product"), ("", "PyTorch, plain")
Key = tuple[str, str]
"""The names of a target and a form."""
File = tuple[Path, str | None]
"""A file and the precision in which its runtime computes it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", default=CONFIGS, help="names that mmcare --help lists")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--shape", type=int, default=512, help="side of the image (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure the processor's time instead of the clock's: on a busy machine, with --threads 1",
    )
    parser.add_argument("--numbers", action="store_true", help="time bf16 and int8 in OpenVINO, too")
    parser.add_argument("-o", "--out", type=Path, help="Markdown file to write, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for config in args.configs:
            files = dict(convert(config, args, Path(folder)))
            times = take_turns(config, files, args, clock)
            parts.append(table(config, times, args))
            print(parts[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(parts))


def convert(config: str, args: argparse.Namespace, folder: Path) -> Iterator[tuple[Key, File]]:
    """Write a file for each target and form, and tell its precision."""
    for name in args.targets:
        try:
            target = check_options(name, "backbone", None)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if target.ending not in ENDINGS:
            print(f"left out: {name} files do not run here", file=sys.stderr)
            continue
        for form in args.forms:
            prepared = prepare(build(config), "detection", "backbone", form, (args.shape, args.shape))
            stem = folder / f"{config.replace('/', '_')}_{name}_{form}"
            try:
                content = target.load().convert(prepared, target.opset)
            except Exception as error:  # an exporter that does not take the form, with an error of its own
                print(f"{name} does not take {form}: {str(error).splitlines()[:1]}", file=sys.stderr)
                continue
            path = write(content, stem, target.ending)
            print(f"{config}: converted {form} to {name}", file=sys.stderr)
            yield (name, form), (path, None)
            if args.numbers and name == "openvino":
                yield ("openvino, bf16", form), (path, "bf16")
                small = quantized(path, args.shape)
                yield ("openvino, int8", form), (write(small, folder / f"{stem.name}_int8", target.ending), None)


def write(content: bytes | dict[str, bytes], stem: Path, ending: str) -> Path:
    """Write the files of a target, and return the one with its ending."""
    for each, data in (content if isinstance(content, dict) else {ending: content}).items():
        stem.with_suffix(each).write_bytes(data)
    return stem.with_suffix(ending)


def quantized(path: Path, side: int) -> dict[str, bytes]:
    """Return the content of an OpenVINO file with all blocks in int8, for ranges from squares of random colours."""
    from mmcare.export.quantization.openvino_int8 import Trials

    colours = np.random.RandomState(1).rand(4, 1, 3, side // 32, side // 32).astype(np.float32) * 255
    pictures = [picture.repeat(32, 2).repeat(32, 3) for picture in colours]
    return Trials(openvino_core().read_model(path), pictures).content(())


def build(config: str) -> torch.nn.Module:
    """Return the model of a config, with random weights."""
    cfg = get_config(config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    initialize(model.backbone, model.backbone.init_cfg)
    return model


def take_turns(
    config: str, files: dict[Key, File], args: argparse.Namespace, clock: Callable[[], float]
) -> dict[Key, list[float]]:
    """Return the times of the calls of each file, of PyTorch's plain form and of a large matrix product, in seconds."""
    image = np.random.RandomState(0).rand(1, 3, args.shape, args.shape).astype(np.float32) * 255
    plain = prepare(build(config), "detection", "backbone", "plain", (args.shape, args.shape)).module
    openers: dict[Key, Callable[[], Callable]] = {
        CEILING: partial(ceiling_product, "cpu"),
        PYTORCH: lambda: partial(plain, torch.from_numpy(image)),
    }
    for key, (path, precision) in files.items():
        openers[key] = partial(_opened, path, args.threads, precision, image)
    times = defaultdict(list)
    for number in range(args.rounds):
        order = list(openers)
        random.Random(number).shuffle(order)
        for key in order:
            call = openers[key]()
            with torch.inference_mode():
                call()
                for _ in range(CALLS):
                    start = clock()
                    call()
                    times[key].append(clock() - start)
            del call
    return {key: times[key] for key in openers}


def _opened(path: Path, threads: int, precision: str | None, image: np.ndarray) -> Callable[[], object]:
    if path.suffix == ".pte":  # its session takes the names of the outputs from a certificate, which is not there
        program, images = load_executorch(path, threads), (torch.from_numpy(image),)
        return lambda: program.load_method("forward").execute(images)  # it is loaded once
    return partial(open_session(path, threads, precision).run, image)


def table(config: str, times: dict[Key, list[float]], args: argparse.Namespace) -> str:
    """Return a Markdown table: the median time of each file with the 10th and the 90th percentile, and ratios."""
    ceiling = product_flops("cpu") / median(times[CEILING])
    (_, _, macs), *_ = count(build(config).backbone.eval(), args.shape, args.shape)
    rows = []
    for (target, form), seconds in times.items():
        if (target, form) != CEILING:
            low, *_, high = quantiles(seconds, n=10)
            middle = median(seconds)
            ratio, share = median(times[PYTORCH]) / middle, 2 * macs / middle / ceiling
            spread = f"{1e3 * middle:.1f} ms ({1e3 * low:.1f}–{1e3 * high:.1f})"
            rows.append((target, form, spread, f"{ratio:.2f}×", f"{share:.0%}"))
    kind = "time of the processor" if args.cpu_time else "time"
    command = f"python docs/export.py {config} --shape {args.shape} --threads {args.threads} --rounds {args.rounds}"
    shown = tabulate(rows, ("target", "form", kind, "speed", "ceiling"), tablefmt="github")
    note = f"{machine('cpu')}; {ceiling / 1e9:.0f} GFLOP/s in a large matrix product."
    return f"`{command}{' --numbers' * args.numbers}{' --cpu-time' * args.cpu_time}`\n\n{shown}\n\n{note}\n"


if __name__ == "__main__":
    main()
