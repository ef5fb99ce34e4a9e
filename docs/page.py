"""Make the picture of the page for the README: ``PYTHONPATH=tests python docs/page.py CHECKPOINT``.

The checkpoint is the one that ``make demo`` trains. Its page, in ``work_dirs/page``, is opened in a headless Chromium
from the disk, and gets a picture of the sample data that the training has not seen.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import find_browser, open_browser

from mmcare.data.sample import prepare
from mmcare.export import export_page
from mmcare.runs import load_config

FOLDER = Path("work_dirs/page/retinanet_care_s1")
PICTURE = "coco/val2017/000000000026.jpg"
DRAWING = Path("docs/pictures/page.jpg")
WINDOW = (1100, 720)


def export(checkpoint: str) -> None:
    cfg = load_config("detection/retinanet_care_s1", ("model",), sample=True)
    export_page(cfg, checkpoint, FOLDER, overwrite=True)


def draw() -> None:
    with TemporaryDirectory() as folder, open_browser(find_browser(), Path(folder)) as tab:
        tab.open((FOLDER / "index.html").absolute().as_uri())
        tab.choose("#file", (prepare("data/sample") / PICTURE).absolute())
        tab.wait("!document.querySelector('#result').hidden")
        DRAWING.write_bytes(tab.screenshot(*WINDOW))


if __name__ == "__main__":
    export(sys.argv[1])
    draw()
