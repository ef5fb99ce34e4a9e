"""Predict pictures, videos and folders: ``mmcare predict SOURCE … --model FILE``."""

from __future__ import annotations

import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...stack import check_stack
from .. import Parser, has_display

if TYPE_CHECKING:
    from ...inference import Files, Prediction


def parse_args() -> Namespace:
    parser = Parser(
        description="Predict pictures, videos and folders of pictures with a trained detector or segmentor: draw what "
        "it finds, and write it in COCO's results format, and label maps as PNG."
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="picture, video or folder of pictures; or the number of a camera, which runs until Ctrl-C",
    )
    parser.add_argument("--model", required=True, metavar="FILE", help="release or checkpoint, or its http(s) address")
    parser.add_argument(
        "--config", help="config file, or a name that mmcare --help lists (default: the one that the model carries)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write to a folder that is not empty")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO annotation file that numbers the images and categories",
    )
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="lowest score that is drawn; all are written (default: 0.3)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="most pictures computed together (default: 8)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: cuda where there is a GPU)")
    parser.add_argument("--show", action="store_true", help="show the drawings in a window; any key continues, q ends")
    args = parser.parse_args()
    if not 0 <= args.score_thr <= 1:
        parser.error(f"--score-thr must be from 0 to 1, not {args.score_thr:g}")
    if "" in args.sources:  # a shell variable that is not set
        parser.error("SOURCE must not be empty")
    return args


def main() -> None:
    args = parse_args()
    if args.show and not has_display():
        raise UserError("there is no display to show pictures on: omit --show, the drawings are written to --out")
    check_out(args.out, args.overwrite)
    check_stack()
    from ...inference import Files, Predictor, check_drawing

    check_drawing()
    camera = camera_of(args.sources)
    sources = [] if camera is not None else find(args.sources)
    given = (args.config, args.model) if args.config else (args.model,)
    predictor = Predictor(*given, device=args.device)
    files = Files(args.out, sources, predictor.classes, args.annotations)
    failed: list[str] = []
    results = predictor(
        sources if camera is None else camera, args.batch_size, on_error=lambda _, error: failed.append(str(error))
    )
    try:
        with closing(track(results, sources)) as shown:  # a bar that is still there would follow the error
            done = write(shown, files, args)
    except OSError as error:
        raise UserError(f"{error.filename or args.out} cannot be written: {error.strerror or error}") from error
    if done:
        print(f"predicted {done} picture{'s' * (done > 1)}: {args.out}")
    if failed:
        total = done + len(failed)
        raise UserError(failed[0] if total == 1 else f"{len(failed)} of {total} failed:\n  " + "\n  ".join(failed))


def check_out(folder: Path, overwrite: bool) -> None:
    """Check that predictions may be written to a folder, and create it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be created: {error.strerror}") from error
    if used and not overwrite:
        raise UserError(f"the folder {folder} is not empty: give another with --out, or add --overwrite")


def camera_of(sources: list[str]) -> int | None:
    """Return the number of a camera, if the only source is a number and no file."""
    is_number = len(sources) == 1 and sources[0].isdecimal() and not Path(sources[0]).exists()
    return int(sources[0]) if is_number else None


def find(sources: list[str]) -> list[str]:
    """Return the files to predict, with those in folders."""
    from ...inference import pictures_in

    return list(chain.from_iterable(pictures_in(path) if Path(path).is_dir() else [path] for path in sources))


def track(results: Iterator[Prediction], sources: list[str]) -> Iterator[Prediction]:
    """Show a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    from ...inference import is_video

    total = len(sources) if sources and not any(map(is_video, sources)) else None
    return track(results, "predicting", total, console=Console(stderr=True))


def write(results: Iterator[Prediction], files: Files, args: Namespace) -> int:
    """Write the predictions, and return how many there are; nothing is written if there are none."""
    first = next(results, None)
    if first is None:
        return 0
    done = 0
    ended = Event()
    if first.source is None:  # what a camera has given is kept
        signal.signal(signal.SIGINT, lambda *_: ended.set())
    with files.opened() as add:
        for prediction in chain([first], results):
            done += 1
            drawing = prediction.draw(args.score_thr)
            add(prediction, drawing)
            if ended.is_set() or (args.show and not show(drawing, wait=prediction.frame is None)):
                break
    return done


def show(drawing: Any, wait: bool) -> bool:
    """Show a drawing; return whether to go on. For a picture, wait for a key."""
    import cv2

    try:
        cv2.imshow("mmcare predict", drawing)
    except cv2.error as error:
        raise UserError("OpenCV was installed without windows (opencv-python-headless): omit --show") from error
    return cv2.waitKey(0 if wait else 1) not in (ord("q"), 27)
