"""The page of ``--format web`` in a browser, opened from the disk and from a server, against the Predictor."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cached_property, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import cv2
import numpy as np
import pytest
from browser import find_browser, open_browser
from helpers import ROOT, load_tool
from PIL import Image

from mmcare import Predictor
from mmcare.errors import UserError
from mmcare.export.web import read_library
from mmcare.runs import load_config

ASSETS = ROOT / "mmcare/export/web"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of onnxruntime-web, from npm or the cache."""
    try:
        files = read_library(None)
    except UserError as error:
        pytest.skip(f"THE PAGE WAS NOT TESTED: {error}")
    folder = tmp_path_factory.mktemp("library")
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("THE PAGE WAS NOT TESTED: there is no Chromium, which `make browser` installs as root on Debian")
    with open_browser(program, tmp_path_factory.mktemp("browser")) as tab:
        yield tab


class Page:
    """The page of a tiny model whose test pipeline makes small images, which the command line has written.

    Args:
        before: another page, which this one replaces.
    """

    def __init__(self, exported, family, head, library, shape, before):
        self.model = exported(family, head)
        self.folder = self.model.folder / "page"
        self.address = (self.folder / "index.html").as_uri()
        options = ["--format", "web", "--onnxruntime-web", library, "--no-metric", "-o", self.folder]
        options += ["--cfg-options", f"{SCALE[0]}={','.join(map(str, SCALE[1]))}"]
        if shape:
            options += ["--shape", *shape]
        if before:
            shutil.copytree(before.folder, self.folder)
            options += ["--overwrite"]
        command = ["export.py", self.model.config, self.model.checkpoint, *options]
        with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(io.StringIO()) as printed:
            monkeypatch.setattr(sys, "argv", list(map(str, command)))
            load_tool("export").main()
        self.printed = printed.getvalue()

    @cached_property
    def predictor(self):
        config = load_config(str(self.model.config), ("model",), cfg_options=dict([SCALE]))
        return Predictor(config, self.model.checkpoint, device="cpu", fast=False)


SCALE = ("test_dataloader.dataset.pipeline.1.scale", (160, 128))
SHAPES = {"retinanet": (117, 160), "mask_rcnn": (117, 160), "semantic_fpn": None, "upernet": (128, 160)}
"""Of the files in the pages: what the pipeline makes of PICTURE; or any, which takes long to export for detectors."""
PICTURE = (110, 150)


@pytest.fixture(scope="module")
def page(exported, library):
    """Return a function that makes the page of a family and a head once."""
    made = {}

    def page(family, head):
        if (family, head) not in made:
            before = next(iter(made.values()), None)
            made[family, head] = Page(exported, family, head, library, SHAPES[head], before)
        return made[family, head]

    return page


@pytest.fixture(scope="module")
def served():
    """Return a function that serves a folder, without any special header, and returns the address."""
    servers = []

    def serve(folder):
        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def draw_picture(height, width):
    """Return shapes in noise, (height, width, 3), BGR."""
    random = np.random.default_rng(height)
    picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for number in range(4):
        x, y = (int(random.integers(0, side // 2)) for side in (width, height))
        colour = random.integers(0, 256, 3).tolist()
        cv2.rectangle(picture, (x, y), (x + width // 3, y + height // 4), colour, -1 if number % 2 else 5)
    return picture


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), draw_picture(*PICTURE))
    return path


STATUS = "document.querySelector('#status').textContent"


def show(tab, path):
    """Choose a picture in the page, and return what the page says of it."""
    tab.evaluate("say('')")
    tab.choose("#file", path)
    return said(tab, path.name)


def said(tab, name):
    """Return what the page says of a picture, when it does."""
    tab.wait(f"{STATUS}.startsWith({json.dumps(name + ':')})")
    return tab.evaluate(STATUS)


def set_threshold(tab, value):
    tab.evaluate(f"threshold.value = {value}; threshold.dispatchEvent(new Event('input'))")


def saved(tab):
    return json.loads(tab.download("#save-json"))


def decode(mask):
    """Return a mask from its run lengths."""
    runs = np.repeat(np.arange(len(mask["counts"])) % 2 == 1, mask["counts"])
    return runs.reshape(mask["size"], order="F")


def assert_same(found, wanted):
    assert (found["width"], found["height"]) == wanted.size[::-1]
    if wanted.label_map is not None:
        label_map = np.full(wanted.size, 255)
        for region in found["regions"]:
            assert region["name"] == wanted.classes[region["label"]]
            label_map[decode(region["mask"])] = region["label"]
        assert len(np.unique(wanted.label_map)) > 1
        assert (label_map != wanted.label_map).mean() < 0.01
        return
    detections = found["detections"]
    assert len(detections) == len(wanted.scores) > 10
    boxes, scores = (np.array([detection[key] for detection in detections]) for key in ("box", "score"))
    assert np.abs(scores - wanted.scores).max() < 1e-3
    assert scores.tolist() == sorted(scores, reverse=True)
    distance = np.abs(boxes[:, None] - wanted.boxes).max(-1)
    labels = np.array([detection["label"] for detection in detections])
    distance[labels[:, None] != wanted.labels] = np.inf  # those of equal scores may change places
    assert distance.min(1).max() < 0.5
    assert len(set(distance.argmin(1))) == len(detections)
    if wanted.masks is not None:
        masks = np.array([decode(detection["mask"]) for detection in detections])
        assert wanted.masks.any()
        assert (masks != wanted.masks[distance.argmin(1)]).mean() < 1e-4


@pytest.mark.parametrize(
    ("family", "head", "is_served"),
    [
        ("care", "retinanet", False),
        ("care", "mask_rcnn", True),
        ("casvit", "semantic_fpn", False),
        ("casvit", "upernet", True),
    ],
)
def test_the_page_finds_what_the_predictor_finds(tab, page, served, picture, family, head, is_served):
    made = page(family, head)
    address = served(made.folder) if is_served else made.address
    tab.open(address)
    show(tab, picture)
    set_threshold(tab, 0)
    (wanted,) = made.predictor(picture)
    assert_same(saved(tab), wanted)
    assert tab.complaints == []
    folder = address.removesuffix("index.html")
    assert len(tab.requests) > 8
    assert all(request.startswith((folder, "blob:", "data:")) for request in tab.requests)


def test_a_page_has_what_its_manifest_lists(page):
    made = page("casvit", "upernet")  # which has replaced another page
    text = (made.folder / "manifest.js").read_text().partition("JSON.parse(")[2]
    manifest = json.loads(json.loads(text.removesuffix(");\n")))
    files = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert files == set(manifest["contents"])
    assert manifest["name"] == "upernet"
    size = sum((made.folder / name).stat().st_size for name in files)
    assert made.printed == f"{made.folder} ({size / 2**20:.1f} MiB)\n"
    assert manifest["certificate"]["classes"] == list("01234")
    assert "MIT License" in (made.folder / "NOTICE.txt").read_text()
    assert [path.name for path in made.folder.parent.glob(".*")] == []


@pytest.fixture(scope="module")
def detector(tab, page):
    """The page of RetinaNet, open, of which the tests below see one picture after the other."""
    made = page("care", "retinanet")
    tab.open(made.address)
    return made


def test_a_rotated_photograph_is_turned(tab, detector, tmp_path):
    photograph = Image.fromarray(draw_picture(*PICTURE[::-1])[..., ::-1])
    exif = photograph.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = tmp_path / "photograph.jpg"
    photograph.save(path, exif=exif, quality=100, subsampling=0)
    show(tab, path)
    set_threshold(tab, 0)
    (wanted,) = detector.predictor(path)
    assert wanted.size == PICTURE
    assert_same(saved(tab), wanted)


def test_the_threshold_decides_what_is_shown_and_saved(tab, detector, picture):
    show(tab, picture)
    set_threshold(tab, 0)
    scores = [detection["score"] for detection in saved(tab)["detections"]]
    middle = round(scores[len(scores) // 2], 2)
    set_threshold(tab, middle)
    shown = [score for score in scores if score >= middle]
    assert 0 < len(shown) < len(scores)
    content = saved(tab)
    assert [detection["score"] for detection in content["detections"]] == shown
    assert (content["picture"], content["model"], content["threshold"]) == ("picture.png", "retinanet", middle)
    rows = tab.evaluate("[...document.querySelectorAll('#rows tr')].map((row) => row.innerText.split('\\t'))")
    assert [float(score) for _, score in rows] == [round(score, 2) for score in shown]
    assert {name for name, _ in rows} <= set("01234")
    assert tab.evaluate("document.querySelector('#found').textContent") == f"{len(shown)} detections"


def test_the_drawing_is_saved(tab, detector, picture):
    show(tab, picture)
    set_threshold(tab, 1)
    plain = cv2.imdecode(np.frombuffer(tab.download("#save-picture"), np.uint8), cv2.IMREAD_COLOR)
    zoom = 5  # as small pictures are enlarged
    assert plain.shape == (PICTURE[0] * zoom, PICTURE[1] * zoom, 3)
    set_threshold(tab, 0)
    drawn = cv2.imdecode(np.frombuffer(tab.download("#save-picture"), np.uint8), cv2.IMREAD_COLOR)
    changed = (drawn != plain).any(-1)
    for detection in saved(tab)["detections"][:3]:
        x1, y1, x2, y2 = (round(side * zoom) for side in detection["box"])
        assert changed[y1 : y2 + 1, [min(x, changed.shape[1] - 1) for x in (x1, x2)]].mean() > 0.9


def test_the_page_tells_the_latency_and_what_was_certified(tab, detector, picture):
    show(tab, picture)
    latency = tab.evaluate("document.querySelector('#latency').textContent")
    assert re.fullmatch(
        r"[\d.]+ ms for reading and resizing, [\d.]+ ms for the network, [\d.]+ ms for drawing\.", latency
    )
    text = tab.evaluate("document.body.textContent")
    assert "This model detects 5 classes: 0, 1, 2, 3, 4." in text
    measured = json.loads(tab.evaluate("document.querySelector('#certificate').textContent"))["measured"]
    facts = tab.evaluate("document.querySelector('#facts').textContent")
    error = float(re.search(r"error of detsat most ([\d.e-]+) from PyTorch's, of 2.0e-4 allowed", facts)[1])
    assert error == pytest.approx(measured["errors"]["dets"]["largest"], rel=0.06)
    assert "for 160×117 pixels where it was exported" in facts


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_may_be_dropped_or_pasted(tab, detector, picture, way):
    content = base64.b64encode(picture.read_bytes()).decode()
    event = dict(
        drop="new DragEvent('drop', { dataTransfer: given })",
        paste="new ClipboardEvent('paste', { clipboardData: given })",
    )[way]
    tab.evaluate(f"""
        given = new DataTransfer();
        given.items.add(new File([decodeBase64("{content}")], "{way}.png"));
        document.dispatchEvent({event});
    """)
    assert re.fullmatch(rf"{way}\.png: \d+ detections\. ", said(tab, f"{way}.png"))


def test_what_is_not_a_picture_is_told_and_the_next_one_shown(tab, detector, picture, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:200])
    reason = "this browser cannot read it as a picture, as it is damaged or of another kind."
    assert show(tab, tmp_path / "text.png") == f"text.png: {reason}"
    cv2.imwrite(str(tmp_path / "line.png"), np.zeros((1, 4000, 3), np.uint8))
    assert show(tab, tmp_path / "line.png") == "line.png: it is too narrow to be resized, with 4000×1 pixels."
    assert "detections" in show(tab, picture)


def test_a_picture_that_does_not_fit_is_made_smaller_and_that_is_told(tab, detector, tmp_path):
    path = tmp_path / "upright.png"
    cv2.imwrite(str(path), draw_picture(150, 110))
    note = "The picture was made smaller than the model was tested with, as this file takes 160×117 pixels."
    assert show(tab, path).endswith(note)
    set_threshold(tab, 0)
    content = saved(tab)
    assert (content["width"], content["height"]) == (110, 150)
    boxes = np.array([detection["box"] for detection in content["detections"]])
    assert len(boxes) and boxes[:, [0, 2]].max() <= 110 and boxes[:, 3].max() > 117


def test_a_files_part_that_is_missing_is_told(tab, page, tmp_path):
    shutil.copytree(page("casvit", "semantic_fpn").folder, tmp_path / "page")
    (tmp_path / "page/data/model-01.js").unlink()
    tab.open((tmp_path / "page/index.html").as_uri())
    tab.wait(f"{STATUS}.includes('cannot')")
    assert tab.evaluate(STATUS) == "The model cannot be loaded: data/model-01.js cannot be loaded."


# -- the scripts by themselves -----------------------------------------------------------------------------------------


def call(tab, expression, **given):
    """Return the value of an expression, in which the worker's functions and some values can be used."""
    scripts = "".join((ASSETS / f"{name}.js").read_text() for name in ("preparing", "finishing", "worker"))
    values = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
    return tab.evaluate(f"(() => {{ {scripts} {values} return {expression}; }})()")


def test_pictures_are_resized_as_by_opencv(tab):
    random = np.random.default_rng(0)
    sizes = [*random.integers(1, 70, (40, 4)).tolist(), [20, 30, 10, 15], [9, 7, 9, 7], [1, 1, 40, 40], [40, 40, 1, 1]]
    for height, width, new_height, new_width in sizes:
        pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        picture = dict(data=pixels.ravel().tolist(), width=width, height=height, channels=4)
        found = call(tab, "Array.from(resize(picture, ...size).data)", picture=picture, size=[new_width, new_height])
        wanted = cv2.resize(pixels[..., :3], (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        assert found == wanted.ravel().tolist()


@pytest.mark.parametrize(
    ("divisor", "size", "message"),
    [
        (1, (300, 20), "it is too small: its 300×20 pixels become 300×20, and the model takes sides of at least 32"),
        (32, (300, 20), None),
        (1, (300, 32), None),
    ],
)
def test_a_picture_that_is_too_small_is_told(tab, divisor, size, message):
    given = dict(
        input=dict(shape=[None, 3, None, None]),
        resizing=dict(scale=None, keep_ratio=True, multiple=None),
        config=dict(data_preprocessor=dict(pad_size_divisor=divisor)),
    )
    width, height = size
    picture = dict(data=[0] * (4 * width * height), width=width, height=height, channels=4)
    attempt = "(() => { certificate = given; try { prepare(picture); } catch (error) { return error.message; } })()"
    assert call(tab, attempt, given=given, picture=picture) == message


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_the_scripts_have_no_syntax_errors():
    for path in ASSETS.glob("*.js"):
        subprocess.run(["node", "--check", path], check=True)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(refusal, monkeypatch, tmp_path, exported):
    """Run the tool for a page of the tiny RetinaNet, which must refuse the options; return the message."""
    monkeypatch.chdir(tmp_path)
    model = exported("care", "retinanet")
    options = ("--format", "web", "-o", "page", "--no-metric", "--shape", 64)
    return partial(refusal, load_tool("export").main, "export.py", model.config, model.checkpoint, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "backbone"], "a page shows what a whole model finds, not a backbone: omit --part"),
        (["--batch", "2"], "a page takes one picture at a time: omit --batch"),
        (
            ["--onnxruntime-web", "there"],
            "there is no there: give the folder or the .tgz of onnxruntime-web 1.30.0 as --onnxruntime-web",
        ),
        (
            ["--onnxruntime-web", "."],
            ". has no dist/ort.wasm.bundle.min.mjs: give the folder of onnxruntime-web 1.30.0 as --onnxruntime-web",
        ),
        (
            ["--format", "onnx", "-o", "a.onnx", "--onnxruntime-web", "."],
            "--onnxruntime-web is what a page runs the model with: add --format web, or omit it",
        ),
        (["--format", "wbe"], "there is no format 'wbe': did you mean web?"),
    ],
)
def test_what_cannot_be_a_page_is_told(refused, options, message, tmp_path):
    assert refused(*options) == message
    assert not list(tmp_path.iterdir())


def test_a_changed_onnxruntime_web_is_refused(refused, tmp_path, library):
    shutil.copytree(library, tmp_path / "changed")
    script = tmp_path / "changed/dist/ort.wasm.bundle.min.mjs"
    script.write_bytes(script.read_bytes() + b"alert()")
    advice = "or was changed: give this release as --onnxruntime-web"
    assert refused("--onnxruntime-web", "changed") == (
        f"changed/dist/ort.wasm.bundle.min.mjs is not that of onnxruntime-web 1.30.0, {advice}"
    )
    (tmp_path / "changed.tgz").write_bytes(b"changed")
    assert refused("--onnxruntime-web", "changed.tgz") == (
        f"changed.tgz is not onnxruntime-web 1.30.0 as npm has it, {advice}"
    )
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("npm", "message"),
    [
        (
            None,
            "a page needs onnxruntime-web 1.30.0 from npm, which is not installed: install npm, or give the package as "
            "--onnxruntime-web",
        ),
        (
            "printf 'npm error code ENOTFOUND\\nnpm error network request failed\\n' >&2; exit 1",
            "npm could not get onnxruntime-web 1.30.0 (network request failed): give the package as --onnxruntime-web",
        ),
        (
            "echo changed > onnxruntime-web-1.30.0.tgz",
            "what npm got is not onnxruntime-web 1.30.0, or was changed: give the package as --onnxruntime-web",
        ),
    ],
)
def test_npm_that_is_missing_or_fails_is_told(refused, monkeypatch, tmp_path, npm, message):
    (tmp_path / "bin").mkdir()
    if npm:
        (tmp_path / "bin/npm").write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / "bin/npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MMCARE_CACHE", str(tmp_path / "cache"))
    assert refused() == message
    assert not (tmp_path / "page").exists()
    assert not list((tmp_path / "cache").glob("*"))


def test_a_folder_that_is_there_is_replaced_only_if_it_is_a_page(refused, page, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page/mine").write_text("mine")
    assert refused() == "page exists: add --overwrite to replace a page, or give another name with -o"
    message = "page is not a page of mmcare, which --overwrite replaces: give another name with -o"
    assert refused("--overwrite") == message
    shutil.copytree(page("casvit", "semantic_fpn").folder, tmp_path / "page", dirs_exist_ok=True)
    message = "page has files besides its page, such as mine: move them, or give another name with -o"
    assert refused("--overwrite") == message
    assert (tmp_path / "page/mine").read_text() == "mine"
