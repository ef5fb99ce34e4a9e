"""Predict pictures, videos and folders: ``mmcare predict SOURCE … --model FILE``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...stack import check_stack
from .. import Parser, has_display

if TYPE_CHECKING:
    from ...inference import Prediction


def parse_args() -> Namespace:
    parser = Parser(
        description="Predict pictures, videos and folders of pictures with a trained detector or segmentor: draw what "
        "it finds, and write it in COCO's results format, and label maps as PNG."
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="picture, video or folder of pictures; or the number of a camera"
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.show and not has_display():
        raise UserError("there is no display to show pictures on: omit --show, the drawings are written to --out")
    check_out(args.out, args.overwrite)
    check_stack()
    from ...inference import Predictor, check_drawing

    check_drawing()
    sources = find(args.sources)
    number = Numbers(sources, args.annotations)
    places = Places(args.out, sources)
    given = (args.config, args.model) if args.config else (args.model,)
    predictor = Predictor(*given, device=args.device)
    number.check(predictor.classes)
    failed: list[str] = []
    results = predictor(sources, args.batch_size, on_error=lambda _, error: failed.append(str(error)))
    try:
        with closing(track(results, sources)) as shown:  # a bar that is still there would follow the error
            done = write(shown, predictor.classes, number, places, args)
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


def find(sources: list[str]) -> list[str] | int:
    """Return the files to predict, with those in folders; or the number of a camera."""
    from ...inference import pictures_in

    if len(sources) == 1 and sources[0].isdecimal() and not Path(sources[0]).exists():
        return int(sources[0])
    return list(chain.from_iterable(pictures_in(path) if Path(path).is_dir() else [path] for path in sources))


class Numbers:
    """The numbers of images and categories in COCO's format.

    An image's is the annotation file's; without one it is the number that its name is, if all names are different
    numbers, as COCO's are, and otherwise its place among all, counted from 1.
    """

    def __init__(self, sources: list[str] | int, annotations: Path | None) -> None:
        from ...inference import is_video

        self.annotations = annotations
        self.by_source: dict[str, int] = {}
        self.categories: dict[str, int] | None = None
        if isinstance(sources, int) or any(map(is_video, sources)):
            if annotations:
                raise UserError("--annotations is for pictures: omit it for a video or a camera")
            return
        if annotations:
            images, self.categories = read_annotations(annotations)
            self.by_source = {source: find_image(source, images, annotations) for source in sources}
            return
        stems = [Path(source).stem for source in sources]
        if all(stem.isascii() and stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems):
            self.by_source = dict(zip(sources, map(int, stems), strict=True))

    def check(self, classes: tuple[str, ...]) -> None:
        """Check that the annotation file has all classes."""
        lacking = [name for name in classes if self.categories is not None and name not in self.categories]
        if lacking:
            raise UserError(f"{self.annotations} has no category {lacking[0]}, which is a class of the model")

    def __call__(self, prediction: Prediction) -> int:
        return self.by_source.get(prediction.source, prediction.index + 1)


def read_annotations(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Return the images of a COCO annotation file by the last part of their names, and the categories' numbers."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images: dict[str, list[dict[str, Any]]] = {}
        for image in content["images"]:
            images.setdefault(Path(image["file_name"]).name, []).append(image)
        return images, {category["name"]: int(category["id"]) for category in content["categories"]}
    except OSError as error:
        raise UserError(f"--annotations {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--annotations {path} is not a COCO annotation file, with images and categories ({type(error).__name__}: "
            f"{error})"
        ) from error


def find_image(source: str, images: dict[str, list[dict[str, Any]]], path: Path) -> int:
    """Return the number of the image whose file_name the path of a picture ends in."""
    named = images.get(Path(source).name, [])
    fitting = [image for image in named if Path(source).absolute().as_posix().endswith(image["file_name"])] or named
    if len(fitting) != 1:
        raise UserError(f"{path} lists {len(fitting) or 'no'} images for {source}: predict only pictures that it lists")
    return int(fitting[0]["id"])


class Places:
    """The files to write for each picture or video: its drawing, and its label map."""

    def __init__(self, folder: Path, sources: list[str] | int) -> None:
        from ...inference import drawing_name, is_video

        self.drawings: dict[str | None, Path] = {None: folder / "pictures/camera.mp4"}
        self.label_maps: dict[str | None, Path] = {None: folder / "label_maps/camera"}
        taken: dict[Path, str] = {}
        for source in [] if isinstance(sources, int) else sources:
            name = Path(source).name
            video = is_video(source)
            drawing = folder / "pictures" / (f"{Path(name).stem}.mp4" if video else drawing_name(name))
            label_map = folder / "label_maps" / (Path(name).stem if video else f"{Path(name).stem}.png")
            for place in (drawing, label_map):
                if taken.setdefault(place, source) != source:
                    raise UserError(
                        f"{taken[place]} and {source} would both be written to {place}: predict them one after the "
                        "other, each with its own --out"
                    )
                if place.absolute() == Path(source).absolute():
                    raise UserError(f"the drawing of {source} would replace it: give another folder with --out")
            self.drawings[source], self.label_maps[source] = drawing, label_map

    def label_map(self, prediction: Prediction) -> Path:
        place = self.label_maps[prediction.source]
        return place if prediction.frame is None else place / f"{prediction.frame:06d}.png"


def track(results: Iterator[Prediction], sources: list[str] | int) -> Iterator[Prediction]:
    """Show a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    from ...inference import is_video

    known = isinstance(sources, list) and not any(map(is_video, sources))
    return track(results, "predicting", len(sources) if known else None, console=Console(stderr=True))


def write(
    results: Iterator[Prediction], classes: tuple[str, ...], number: Numbers, places: Places, args: Namespace
) -> int:
    """Write the predictions, and return how many there are; nothing if there are none."""
    from ...inference import coco_files, write_image

    first = next(results, None)
    if first is None:
        return 0
    done = 0
    with coco_files(args.out, classes, number.categories) as add, Drawings(places) as draw:
        for prediction in chain([first], results):
            done += 1
            add(prediction, number(prediction))
            if prediction.label_map is not None:
                write_image(places.label_map(prediction), prediction.label_map)
            drawing = prediction.draw(args.score_thr)
            draw(prediction, drawing)
            if args.show and not show(drawing, wait=prediction.frame is None):
                break
    return done


class Drawings:
    """A context in which drawings are written: each picture to its file, the frames of a video to one."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.video = ExitStack()
        self.source: str | None = ""
        self.write_frame: Callable[[Any], None]

    def __enter__(self) -> Drawings:
        return self

    def __call__(self, prediction: Prediction, drawing: Any) -> None:
        from ...inference import video_file, video_rate, write_image

        path = self.places.drawings[prediction.source]
        if prediction.frame is None:
            write_image(path, drawing)
            return
        if prediction.frame == 0:
            self.video.close()
            rate = video_rate(prediction.source) if prediction.source else 25
            self.write_frame = self.video.enter_context(video_file(path, rate))
        self.write_frame(drawing)

    def __exit__(self, *error: Any) -> None:
        self.video.__exit__(*error)


def show(drawing: Any, wait: bool) -> bool:
    """Show a drawing; return whether to go on. For a picture, wait for a key."""
    import cv2

    try:
        cv2.imshow("mmcare predict", drawing)
    except cv2.error as error:
        raise UserError("OpenCV was installed without windows (opencv-python-headless): omit --show") from error
    return cv2.waitKey(0 if wait else 1) not in (ord("q"), 27)
