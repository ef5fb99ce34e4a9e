"""Files for predictions, written one prediction at a time, so that their number does not matter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from ..files import whole_file, write_file
from .numbering import Numbers
from .prediction import Prediction
from .sources import is_video, video_rate

_DRAWABLE = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Endings of pictures that are drawn in the format in which they came."""
_RATE_OF_CAMERA = 25.0


class Files:
    """The files of predictions in a folder: results, drawings and label maps.

    ``predictions.json`` is in COCO's results format; ``images.json`` says what its numbers mean. The latter is an
    annotation file without annotations: ``COCO("images.json").loadRes("predictions.json")`` reads the two.

    Args:
        folder: an existing folder.
        sources: paths of pictures and videos; none for a camera.
        classes: the model's class names.
        annotations: a COCO annotation file with the numbers of images and categories; see :class:`Numbers`.

    Raises:
        UserError: two sources would have the same file, a source would be replaced, or the annotation file cannot be
            used.
    """

    def __init__(
        self, folder: Path, sources: Sequence[str], classes: Sequence[str], annotations: Path | None = None
    ) -> None:
        self._folder = folder
        self._numbers = Numbers(sources, classes, annotations)
        self._drawings: dict[str | None, Path] = {None: folder / "pictures/camera.mp4"}
        self._label_maps: dict[str | None, Path] = {None: folder / "label_maps/camera"}
        taken: dict[Path, str] = {}
        for source in sources:
            name, stem = Path(source).name, Path(source).stem
            if is_video(source):
                drawing, label_map = f"{stem}.mp4", stem
            else:
                drawing, label_map = name if name.lower().endswith(_DRAWABLE) else f"{name}.png", f"{stem}.png"
            self._drawings[source] = folder / "pictures" / drawing
            self._label_maps[source] = folder / "label_maps" / label_map
            for place in (self._drawings[source], self._label_maps[source]):
                if taken.setdefault(place, source) != source:
                    raise UserError(
                        f"{taken[place]} and {source} would both be written to {place}: predict them one after the "
                        "other, each with its own --out"
                    )
                if place.absolute() == Path(source).absolute():
                    raise UserError(f"the drawing of {source} would replace it: give another folder with --out")

    @contextmanager
    def opened(self) -> Iterator[Callable[[Prediction, np.ndarray], None]]:
        """Return a context that yields a function which writes a prediction and its drawing.

        The two JSON files get their names at the end, and the drawing of a video when its last frame is written; none
        of them does if an exception ends the context.
        """
        with _coco_files(self._folder, self._numbers.of_classes) as add, _Drawings(self._drawings) as draw:

            def write(prediction: Prediction, drawing: np.ndarray) -> None:
                add(prediction, self._numbers.of_picture(prediction))
                draw(prediction, drawing)
                if prediction.label_map is not None:
                    place = self._label_maps[prediction.source]
                    inside = "" if prediction.frame is None else f"{prediction.frame:06d}.png"
                    _write_image(place / inside, prediction.label_map)

            yield write


@contextmanager
def _coco_files(folder: Path, category_ids: Mapping[str, int]) -> Iterator[Callable[[Prediction, int], None]]:
    with whole_file(folder / "predictions.json") as results, whole_file(folder / "images.json") as images:
        separators = {results: b"", images: b""}

        def write(file, entry) -> None:
            file.write(separators[file] + b"\n" + json.dumps(entry, ensure_ascii=False).encode())
            separators[file] = b","

        def add(prediction: Prediction, image_id: int) -> None:
            for result in prediction.to_coco(image_id, category_ids):
                write(results, result)
            height, width = prediction.size
            image = dict(id=image_id, file_name=Path(prediction.source or "camera").name, height=height, width=width)
            write(images, image if prediction.frame is None else {**image, "frame_id": prediction.frame})

        results.write(b"[")
        images.write(b'{"info": {}, "annotations": [], "images": [')
        yield add
        results.write(b"\n]\n")
        categories = [dict(id=number, name=name) for name, number in category_ids.items()]
        images.write(b'\n], "categories": ' + json.dumps(categories, ensure_ascii=False).encode() + b"}\n")


class _Drawings(ExitStack):
    """A context in which drawings are written: each picture to its file, the frames of a video to one."""

    def __init__(self, places: Mapping[str | None, Path]) -> None:
        super().__init__()
        self._places = places
        self._write_frame: Callable[[np.ndarray], None]

    def __call__(self, prediction: Prediction, drawing: np.ndarray) -> None:
        place = self._places[prediction.source]
        if prediction.frame is None:
            _write_image(place, drawing)
            return
        if prediction.frame == 0:
            self.close()  # the video before
            rate = video_rate(prediction.source) if prediction.source else _RATE_OF_CAMERA
            self._write_frame = self.enter_context(_video_file(place, rate))
        self._write_frame(drawing)


def _write_image(path: Path, picture: np.ndarray) -> None:
    write_file(path, cv2.imencode(path.suffix, picture)[1].tobytes())


@contextmanager
def _video_file(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Return a context that yields a function which writes a frame; the file gets its name at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")  # the ending tells OpenCV the format
    writer = cv2.VideoWriter()

    def write(frame: np.ndarray) -> None:
        if not writer.isOpened():
            height, width = frame.shape[:2]
            if not writer.open(str(partial), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height)):
                raise UserError(f"the video {path} cannot be written: check that the folder can be written to")
        writer.write(frame)

    try:
        yield write
        writer.release()
        os.replace(partial, path)
    finally:
        writer.release()
        partial.unlink(missing_ok=True)
