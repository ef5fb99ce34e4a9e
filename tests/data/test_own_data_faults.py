"""``--data FOLDER``: a fault in the data set, and data from strangers, end in one sentence with the file."""

import json
import struct
import sys
import zlib

import numpy as np
import pytest
from data_formats import generated, labelme_shape, voc_object, write, write_labelme
from helpers import load_tool
from PIL import Image

from mmcare import UserError
from mmcare.data.own import OwnData
from mmcare.runs import load_config

train, print_config = load_tool("train"), load_tool("print_config")
RETINANET, MASK_RCNN, SEMANTIC_FPN = (
    "detection/retinanet_care_s1",
    "detection/mask_rcnn_care_s0",
    "segmentation/semantic_fpn_care_s0",
)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return generated(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def mine(monkeypatch, tmp_path):
    """Return where the data set is to be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def told(mine, config=RETINANET, **options):
    """Return what is said of a data set that cannot be used."""
    with pytest.raises(UserError) as raised:
        load_config(config, data=OwnData(str(mine), **options))
    assert not any((mine.parent / "work_dirs/data").glob("*")) if (mine.parent / "work_dirs/data").is_dir() else True
    return str(raised.value)


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)


def claim(path, width, height):
    """Write a PNG that claims a size and has no pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def yolo(mine, *lines, names="[cat, dog]"):
    for name in ("a", "b"):
        picture(mine / f"images/{name}.jpg")
    (mine / "labels").mkdir()
    (mine / "labels/a.txt").write_text("\n".join(lines))
    (mine / "data.yaml").write_text(f"names: {names}\n")


def voc(mine, content):
    picture(mine / "a.jpg")
    (mine / "a.xml").write_text(content)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_no_folder_an_empty_one_and_one_without_annotations(mine):
    assert told(mine) == f"--data takes the folder of a data set, and {mine} does not exist: check the path"
    mine.mkdir()
    assert told(mine) == f"the folder {mine} is empty: put pictures and their annotations into it"
    picture(mine / "a.jpg")
    assert told(mine).startswith(f"{mine} has 1 picture and no annotations that can be read (COCO's JSON, YOLO's text")
    assert told(mine / "a.jpg").startswith(f"--data takes the folder of a data set, and {mine}/a.jpg is a file")


def test_two_formats_are_named_and_format_chooses(mine, splits):
    write("coco", mine, splits)
    (mine / "Annotations").mkdir()
    for one in (*splits["train"], *splits["val"]):
        (mine / f"Annotations/{one['name']}.xml").write_text(
            f"<annotation>{voc_object('disc', 1, 1, 9, 9)}</annotation>"
        )
    assert told(mine) == (
        f"{mine} has annotations in two formats, COCO's JSON (annotations/instances_train2017.json) and Pascal VOC's "
        "XML (Annotations/t1.xml): choose one with --format coco or --format voc"
    )
    assert load_config(RETINANET, data=OwnData(mine, "voc")).model.bbox_head.num_classes == 1
    assert load_config(RETINANET, data=OwnData(mine, "coco")).model.bbox_head.num_classes == 4


def test_label_maps_do_not_train_a_detector(mine):
    picture(mine / "images/a.jpg")
    (mine / "masks").mkdir()
    Image.fromarray(np.ones((30, 40), np.uint8)).save(mine / "masks/a.png")
    (mine / "classes.txt").write_text("sky\nsea\n")
    expected = f"{mine} has label maps (masks/a.png), which are for segmentation, and this config detects"
    assert told(mine).startswith(expected)
    assert told(mine, format="label-maps").startswith(expected)


@pytest.mark.parametrize("config", [RETINANET, SEMANTIC_FPN])
def test_no_object_to_train_on(mine, config):
    yolo(mine)
    for split, lines in (("train", ""), ("val", "0 0.5 0.5 0.2 0.5 0.2 0.9")):
        picture(mine / f"images/{split}/c.jpg")
        (mine / f"labels/{split}").mkdir()
        (mine / f"labels/{split}/c.txt").write_text(lines)
    options = {} if config == RETINANET else {"background": "extra"}
    assert told(mine, config, **options) == (
        f"the 3 pictures of {mine} to train on have no annotated object (read as YOLO's text files): check that their "
        "annotations are where docs/own-data.md shows"
    )


def test_a_folder_whose_labels_lie_elsewhere(mine):
    yolo(mine, "0 0.5 0.5 0.2 0.2")
    (mine / "labels").rename(mine / "annotated")
    assert "have no annotated object (read as YOLO's text files)" in told(mine)


def test_a_format_that_is_not_there(mine, splits):
    write("coco", mine, splits)
    assert told(mine, format="yolo") == f"{mine} has no YOLO's text files, which --format yolo asks for"


def test_options_that_do_not_go_together(refusal, mine):
    assert refusal(print_config.main, "config", RETINANET, "--data", "").startswith("--data takes the folder of a data")
    options = [RETINANET, "--data", mine]
    assert refusal(print_config.main, "config", *options, "--sample").startswith("argument --sample: not allowed with")
    assert refusal(print_config.main, "config", RETINANET, "--format", "coco").startswith(
        "--format and --background say"
    )
    picture(mine / "a.jpg")
    message = refusal(print_config.main, "config", *options, "--background", "extra")
    assert message == "--background is for segmentation, and this config detects: omit the option"


def test_one_picture_and_no_training_split(mine):
    voc(mine / "val", f"<annotation>{voc_object('cat', 1, 1, 9, 9)}</annotation>")
    assert told(mine) == f"{mine} has pictures for val only: add those to train on, in a folder train"
    (mine / "val").rename(mine / "train")
    assert told(mine).startswith(f"{mine} has only one annotated picture")


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_a_picture(mine, content):
    yolo(mine, "0 0.5 0.5 0.5 0.5")
    (mine / "images/b.jpg").write_bytes(content)
    assert told(mine).startswith(f"{mine}/images/b.jpg is not a picture that can be decoded: replace it")


def test_a_damaged_picture(mine):
    yolo(mine, "0 0.5 0.5 0.5 0.5")
    noise = np.random.RandomState(0).randint(0, 255, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(mine / "images/b.jpg")
    whole = (mine / "images/b.jpg").read_bytes()
    (mine / "images/b.jpg").write_bytes(whole[: len(whole) // 2])
    assert told(mine).startswith(f"1 picture in {mine} cannot be decoded, as the files are damaged (images/b.jpg)")


@pytest.mark.parametrize("size", [(15_000, 15_000), (60_000, 60_000)])
def test_a_picture_that_claims_to_be_huge(mine, size):
    yolo(mine, "0 0.5 0.5 0.5 0.5")
    claim(mine / "images/c.png", *size)
    assert told(mine).startswith(f"{mine}/images/c.png would have more than 178 million pixels when decoded")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../secret.jpg", "which is outside of"),
        ("/etc/secret.jpg", "by an absolute path"),
        ("C:\\secret.jpg", "by an absolute path"),
    ],
)
@pytest.mark.parametrize("kind", ["coco", "labelme", "yolo"])
def test_a_path_that_leaves_the_folder(mine, splits, kind, name, message):
    picture(mine.parent / "secret.jpg")
    write(kind, mine, splits)
    if kind == "coco":
        path = mine / "annotations/instances_val2017.json"
        content = json.loads(path.read_text())
        content["images"][0]["file_name"] = name
        path.write_text(json.dumps(content))
    elif kind == "labelme":
        path = mine / "val/v1.json"
        path = sorted((mine / "val").glob("*.json"))[0]
        path.write_text(json.dumps({**json.loads(path.read_text()), "imagePath": name}))
    else:
        path = mine / "val.txt"
        path.write_text(name)
        (mine / "data.yaml").write_text("train: images/train\nval: val.txt\nnames: [disc, triangle, box, star]\n")
    said = told(mine)
    assert said.startswith(str(path)) and f"names the picture {name}" in said and message in said


# -- COCO --------------------------------------------------------------------------------------------------------------


def _drop(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def _set(value, *keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def _drop_both(content):
    for key in ("bbox", "segmentation"):
        _drop("annotations", 1, key)(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("categories"), " is neither COCO's JSON (with images, annotations and categories) nor labelme's"),
        (_drop("images", 0, "file_name"), ': images[0] has no "file_name", which COCO\'s format requires'),
        (_drop("annotations", 1, "image_id"), ': annotations[1] has no "image_id"'),
        (_drop_both, ': annotations[1] has no "bbox", which'),
        (
            _set([7], "annotations", 1, "image_id"),
            ': annotations[1] has the "image_id" [7], where a number or a name is',
        ),
        (_set(99, "annotations", 1, "image_id"), ": annotations[1] is for the image 99, which the file does not list"),
        (
            _set(99, "annotations", 0, "category_id"),
            ": annotations[0] has the category 99, which the file does not list",
        ),
        (_set([1, 2, 3], "annotations", 0, "bbox"), ": annotations[0] has the bbox [1, 2, 3] instead of"),
        (_set([1, 2, 3, float("nan")], "annotations", 0, "bbox"), ": annotations[0] (bbox) has [1, 2, 3, nan] where"),
        (_set("none.jpg", "images", 0, "file_name"), " has annotations of a picture that is missing (none.jpg)"),
        (_set(7, "images", 0, "width"), ": images[0] is for a picture of 7×"),
        (_set("x", "categories", 0, "name"), None),
        (_set("box", "categories", 0, "name"), " names the class box twice"),
        (
            _set({"counts": "1", "size": [3, 4]}, "annotations", 0, "segmentation"),
            ": annotations[0] has a mask for another",
        ),
    ],
)
def test_a_file_that_is_not_as_cocos(mine, splits, change, message):
    write("coco", mine, splits)
    path = mine / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    said = told(mine)
    if message is None:
        assert said.startswith("the splits have different classes: ")
        assert str(path) in said and "has disc" in said
    else:
        assert said.startswith(f"{path}{message}")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\0"])
def test_what_is_not_json(mine, splits, content):
    write("coco", mine, splits)
    (mine / "annotations/instances_val2017.json").write_text(content)
    assert told(mine).startswith(f"{mine}/annotations/instances_val2017.json is not JSON (")


def test_two_files_for_a_split(mine, splits):
    write("coco", mine, splits)
    path = mine / "annotations/instances_val2017.json"
    (mine / "annotations/instances_valid.json").write_text(path.read_text())
    assert told(mine).startswith(f"{mine} has several annotation files to val on (annotations/instances_val2017.json, ")


# -- YOLO --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5 1.2", "has 1.2, which is not from 0 to 1"),
        ("0 -0.1 0.5 0.5 1", "has -0.1, which is not from 0 to 1"),
        ("0 320 240 20 20", "has 320, which is not from 0 to 1"),
        ("2 0.5 0.5 0.5 0.5", "has the class 2, but data.yaml names 2 classes, from 0 on"),
        ("-1 0.5 0.5 0.5 0.5", "has the class -1, but"),
        ("0.5 0.5 0.5 0.5 0.5", "has the class 0.5, but"),
        ("cat 0.5 0.5 0.5 0.5", "has ['cat', '0.5', '0.5', '0.5', '0.5'] where numbers are expected"),
        ("0 nan 0.5 0.5 0.5", "has ['0', 'nan', '0.5', '0.5', '0.5'] where numbers are expected"),
        ("0 0.5 0.5 0.5", "has 3 numbers after the class: a box has 4"),
        ("0 0.5 0.5 0.5 0.5 0.5 0.5 0.5", "has 7 numbers after the class: a box has 4"),
    ],
)
def test_a_line_that_is_not_as_yolos(mine, line, message):
    yolo(mine, "0 0.5 0.5 0.5 0.5", "", line)
    assert told(mine).startswith(f"line 3 of {mine}/labels/a.txt {message}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[", " is not YAML ("),
        ("!!python/object/apply:os.system [true]", " is not YAML (could not determine a constructor for the tag"),
        ("{0: cat, 2: dog}", " numbers the classes [0, 2]…: number them from 0 on"),
        ("5", " has names: 5, where a list"),
        ("[cat, cat]", " names the class cat twice"),
        ("[]", " names no class"),
    ],
)
def test_a_data_yaml_that_cannot_be_used(mine, names, message):
    yolo(mine, "0 0.5 0.5 0.5 0.5", names=names)
    assert told(mine).startswith(f"{mine}/data.yaml{message}")


def test_labels_of_a_missing_picture(mine):
    yolo(mine, "0 0.5 0.5 0.5 0.5")
    (mine / "labels/z.txt").write_text("0 0.5 0.5 0.5 0.5")
    assert told(mine).startswith(f"{mine} has annotations of a picture that is missing (labels/z.txt): add")


def test_a_training_folder_that_is_not_there(mine):
    yolo(mine, "0 0.5 0.5 0.5 0.5")
    (mine / "data.yaml").write_text("train: pictures\nnames: [cat, dog]")
    assert told(mine).startswith(f"{mine}/data.yaml says train: pictures, which is not a folder or list of pictures in")


# -- Pascal VOC and labelme --------------------------------------------------------------------------------------------

BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&a;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><object>", "{path} cannot be read as XML (no element found: line 1, column 20): replace it"),
        ("", "{path} cannot be read as XML (no element found: line 1, column 0)"),
        (BOMB, "{path} cannot be read as XML (it defines entities, which are not expanded): replace it"),
        (OUTSIDE, "{path} cannot be read as XML (it defines entities, which are not expanded): replace it"),
        ("<html/>", "{path} has <html> where Pascal VOC has <annotation>: remove the file"),
        ("<annotation><object/></annotation>", "object 1 of {path} has no name: add its class"),
        ("<annotation><object><name>cat</name></object></annotation>", "object 1 of {path} has no bndbox with xmin"),
        (
            f"<annotation>{voc_object('cat', 1, 1, 9, 9).replace('<xmin>2', '<xmin>left')}</annotation>",
            "object 1 of {path} has ['left', '2', '10', '10'] where numbers are expected",
        ),
        (
            "<annotation><size><width>41</width><height>30</height></size></annotation>",
            "{path} is for a picture of 41×30 pixels, but a.jpg has 40×30 after any EXIF rotation",
        ),
    ],
)
def test_a_file_that_is_not_as_vocs(mine, content, message):
    voc(mine, content)
    assert told(mine).startswith(message.format(path=mine / "a.xml"))


def test_classes_that_are_only_in_another_split(mine):
    for split, name in (("train", "cat"), ("val", "Cat")):
        voc(mine / split, f"<annotation>{voc_object(name, 1, 1, 9, 9)}</annotation>")
    assert told(mine) == (
        f"the splits of {mine} have different classes: Cat is in val (val/a.jpg) and not in train; correct the name, "
        "add such objects to train, or list all classes in classes.txt"
    )
    (mine / "classes.txt").write_text("cat")
    assert told(mine) == f"{mine} has objects of the class Cat, which its classes.txt does not name: add it"


def test_annotations_of_a_missing_picture(mine):
    voc(mine, f"<annotation>{voc_object('cat', 1, 1, 9, 9)}</annotation>")
    (mine / "z.xml").write_text("<annotation/>")
    assert told(mine).startswith(f"{mine} has annotations of a picture that is missing (z.xml): add")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "cat"}, 'has no "label" or no "points"'),
        (labelme_shape("cat", [[1, 2]]), "has not the 3 points that a polygon needs"),
        (labelme_shape("cat", [[1, 2], [3, 4]], "mask", mask="%"), "has no mask that can be decoded"),
        (labelme_shape("cat", [[1, 2], [3, None]], "rectangle"), "has [3, None] where numbers are expected"),
    ],
)
def test_a_shape_that_is_not_as_labelmes(mine, shape, message):
    picture(mine / "a.jpg")
    write_labelme(mine / "a.json", {"name": "a", "size": (40, 30)}, [shape])
    assert told(mine).startswith(f"{mine}/a.json: shapes[0] {message}")


# -- masks and label maps ----------------------------------------------------------------------------------------------


def test_masks_are_needed_for_masks(mine, splits):
    write("voc", mine, splits)
    said = told_after_reading(mine, MASK_RCNN)
    assert "learns masks, and the " in said
    assert said.endswith("train on boxes with one of the RetinaNet configs, such as detection/retinanet_care_s1")
    assert told(mine, SEMANTIC_FPN, background="extra").startswith("segmentation needs outlines, and the ")


def told_after_reading(mine, config):
    with pytest.raises(UserError) as raised:
        load_config(config, data=OwnData(str(mine)))
    for made in mine.parent.glob("work_dirs/data/*"):
        made.rename(mine.parent / made.name)
    return str(raised.value)


def test_polygons_do_not_tell_what_is_around_them(mine, splits):
    write("coco", mine, splits)
    for background in (None, "listed"):
        assert told(mine, SEMANTIC_FPN, background=background).startswith(
            f"the polygons in {mine} leave pixels without a class: add --background extra if"
        )


def label_maps(mine, *values, classes="cat\ndog", mode="L"):
    for index, value in enumerate(values):
        picture(mine / f"images/{index}.jpg")
        (mine / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.tile(np.uint8(value), (30, 40 // len(value)))).convert(mode).save(
            mine / f"masks/{index}.png"
        )
    if classes:
        (mine / "classes.txt").write_text(classes)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            [[0, 1], [0, 1]],
            {},
            "the label 0 in the label maps of {mine} may mean three things: add --background listed",
        ),
        (
            [[0, 1], [1, 2]],
            {"background": "listed"},
            "the label map {mine}/masks/1.png has the label 2, but with --background listed the 2 classes (cat, dog) "
            "have the labels 0 to 1",
        ),
        (
            [[0, 1], [1, 3]],
            {"background": "ignore"},
            "the label map {mine}/masks/1.png has the label 3, but with --background ignore the 2 classes (cat, dog) "
            "have the labels 1 to 2",
        ),
        (
            [[0, 255], [0, 255]],
            {"background": "listed"},
            "the label maps in {mine} have only the labels 0 and 255, and the latter",
        ),
        ([[0, 1]], {"background": "listed"}, "{mine} has only one annotated picture"),
    ],
)
def test_label_maps_that_cannot_be_used(mine, values, options, message):
    label_maps(mine, *values)
    assert told(mine, SEMANTIC_FPN, **options).startswith(message.format(mine=mine))


def test_a_colour_picture_as_a_label_map(mine):
    label_maps(mine, [0, 1], [0, 1], mode="RGB")
    assert told(mine, SEMANTIC_FPN, background="listed").startswith(f"the label map {mine}/masks/1.png has 3 channels")


def test_a_label_map_of_another_size_or_without_a_picture_or_classes(mine):
    label_maps(mine, [0, 1], [0, 1])
    picture(mine / "images/1.jpg", (20, 30))
    assert told(mine, SEMANTIC_FPN, background="listed").startswith(
        f"the label map {mine}/masks/1.png has 40×30 pixels"
    )
    (mine / "images/1.jpg").unlink()
    assert told(mine, SEMANTIC_FPN, background="listed").startswith(
        f"{mine} has annotations of a picture that is missing (masks/1.png)"
    )
    (mine / "classes.txt").unlink()
    assert told(mine, SEMANTIC_FPN).startswith(f"{mine} has label maps but no classes.txt: add it")


def test_the_extra_class_is_not_listed_too(mine):
    label_maps(mine, [0, 1], [0, 1], classes="background\ncat")
    assert told(mine, SEMANTIC_FPN, background="extra").startswith(
        f"--background extra adds a class 'background', and {mine} has one already: use --background listed"
    )


def test_the_command_line_tells_it_in_one_line(refusal, mine):
    yolo(mine, "0 0.5 0.5 0.5 1.2")
    assert refusal(train.main, "train", RETINANET, "--data", mine).startswith(f"line 1 of {mine}/labels/a.txt has 1.2")


def test_without_the_extra_it_is_named(mine, monkeypatch):
    voc(mine, "<annotation/>")
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    assert told(mine) == "reading Pascal VOC's XML needs defusedxml: pip install mmcare[data]"
