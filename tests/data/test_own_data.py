"""``--data FOLDER``: the usual formats give the same training targets, and a config gets the data set's classes."""

import json
import re
from base64 import b64encode
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_formats import coco_content, generated, labelme_shape, put, voc_object, write, write_label_maps, write_labelme
from helpers import DETECTOR, IN_PROCESS, SEGMENTOR, load_tool, run_tool, succeed
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from mmcare.data.own import OwnData
from mmcare.data.sample import CLASSES, SEMANTIC_CLASSES
from mmcare.runs import list_configs, load_config

print_config, browse_dataset, test = (load_tool(name) for name in ("print_config", "browse_dataset", "test"))
RETINANET, MASK_RCNN = "detection/retinanet_care_s1", "detection/mask_rcnn_care_s0"
SEMANTIC_FPN, UPERNET = "segmentation/semantic_fpn_care_s0", "segmentation/upernet_care_s0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of the sample data."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def splits(made):
    return generated(made)


@pytest.fixture(autouse=True)
def _in_own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def dataset(cfg, split):
    init_default_scope(cfg.default_scope)
    return DATASETS.build(cfg[f"{split}_dataloader"].dataset)


def boxes(cfg):
    """Return the boxes and class names of all pictures, bit for bit, by the pictures' names."""
    found = {}
    cfg.train_dataloader.dataset.filter_cfg = None  # also pictures without objects
    for split in ("train", "val"):
        data = dataset(cfg, split)
        for index in range(len(data)):
            info = data.get_data_info(index)
            items = [
                (np.float32(one["bbox"]).tobytes(), one["bbox_label"], one["ignore_flag"]) for one in info["instances"]
            ]
            found[info["img_path"].rpartition("/")[2]] = items
    return found


def masks(cfg):
    """Return the training targets' masks by the pictures' names."""
    cfg.train_dataloader.dataset.pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
        dict(type="PackDetInputs"),
    ]
    items = [item["data_samples"] for item in dataset(cfg, "train")]
    return {item.img_path.rpartition("/")[2]: item.gt_instances.masks.to_ndarray() for item in items}


def small_picture(folder, name="a.jpg", size=(40, 30), exif=None):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(len(name)).randint(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(folder / name, **({"exif": exif} if exif else {}))
    return folder / name


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize("kind", ["roboflow", "yolo", "yolo-polygons", "voc", "labelme"])
def test_all_formats_give_the_same_boxes_and_classes(splits, tmp_path, kind):
    wanted = boxes(load_config(RETINANET, data=OwnData(write("coco", tmp_path / "coco", splits))))
    assert len(wanted) == 9 and sum(map(len, wanted.values())) > 15
    # And those are the ones that were drawn.
    for picture in (*splits["train"], *splits["val"]):
        drawn = [(x, y, x + width, y + height) for _, (x, y, width, height), _ in picture["objects"]]
        found = [np.frombuffer(box, np.float32) for box, *_ in wanted[f"{picture['name']}.jpg"]]
        assert np.array_equal(np.reshape(found, (-1, 4)), np.reshape(drawn, (-1, 4)))
    cfg = load_config(RETINANET, data=OwnData(write(kind, tmp_path / kind, splits)))
    assert boxes(cfg) == wanted
    assert cfg.train_dataloader.dataset.metainfo.classes == CLASSES


@pytest.mark.parametrize("kind", ["yolo-polygons", "labelme"])
def test_all_formats_with_polygons_give_the_same_masks(splits, tmp_path, kind):
    wanted = masks(load_config(MASK_RCNN, data=OwnData(write("coco", tmp_path / "coco", splits))))
    found = masks(load_config(MASK_RCNN, data=OwnData(write(kind, tmp_path / kind, splits))))
    assert found.keys() == wanted.keys() and len(wanted) == 5  # one has no objects
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert sum(map(np.sum, wanted.values())) > 1000


def test_what_supervision_writes_is_read_as_supervision_reads_it(splits, tmp_path):
    import supervision

    write("coco", tmp_path / "coco", {"train": splits["train"]})
    pictures, marks = tmp_path / "coco/train2017", tmp_path / "coco/annotations/instances_train2017.json"
    given = supervision.DetectionDataset.from_coco(str(pictures), str(marks))
    for kind, save, read in (
        ("yolo", "as_yolo", lambda p, m: supervision.DetectionDataset.from_yolo(p, m, f"{m}/../data.yaml")),
        ("voc", "as_pascal_voc", supervision.DetectionDataset.from_pascal_voc),
        ("labelme", "as_labelme", supervision.DetectionDataset.from_labelme),
    ):
        folder = tmp_path / kind
        images, labels = str(folder / "images"), str(folder / "labels")
        more = {"data_yaml_path": str(folder / "data.yaml")} if kind == "yolo" else {}
        getattr(given, save)(images_directory_path=images, annotations_directory_path=labels, **more)
        wanted = read(images, labels)
        wanted_boxes = Counter()
        for _, _, detections in wanted:
            names = [wanted.classes[number] for number in detections.class_id]
            wanted_boxes.update(zip(names, map(tuple, detections.xyxy.round(1).tolist()), strict=True))
        cfg = load_config(RETINANET, data=OwnData(folder))
        names = cfg.train_dataloader.dataset.metainfo.classes
        found = Counter(
            (names[label], tuple(np.frombuffer(box, np.float32).round(1).tolist()))
            for items in boxes(cfg).values()
            for box, label, _ in items
        )
        assert found == wanted_boxes, kind


def test_voc_is_counted_from_one_and_difficult_objects_are_ignored(tmp_path):
    for name in ("a", "b"):
        small_picture(tmp_path / "mine", f"{name}.jpg")
        objects = voc_object("car", 0, 0, 40, 30) + voc_object("car", 4, 5, 6, 7, difficult=1)
        (tmp_path / f"mine/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    found = boxes(load_config(RETINANET, data=OwnData("mine")))
    whole, part = (np.float32(box).tobytes() for box in ((0, 0, 40, 30), (4, 5, 10, 12)))
    assert found == {"a.jpg": [(whole, 0, 0), (part, 0, 1)], "b.jpg": [(whole, 0, 0), (part, 0, 1)]}


def test_labelmes_groups_circles_and_masks(tmp_path, capsys):
    small_picture(tmp_path / "mine", "a.png")
    bitmap = np.zeros((6, 8), np.uint8)
    bitmap[1:5, 2:7] = 255
    encoded = b64encode(cv2.imencode(".png", bitmap)[1].tobytes()).decode()
    shapes = [
        labelme_shape("cup", [[1, 1], [5, 1], [5, 4]], group_id=3),
        labelme_shape("cup", [[10, 2], [14, 2], [14, 8], [10, 8]], group_id=3),
        labelme_shape("ball", [[20, 10], [25, 10]], "circle"),
        labelme_shape("ball", [[30, 20], [38, 26]], "mask", mask=encoded),
        labelme_shape("cup", [[30, 28], [22, 20]], "rectangle"),
        labelme_shape("cup", [[1, 1]], "point"),
    ]
    write_labelme(tmp_path / "mine/a.json", {"name": "a", "size": (40, 30)}, shapes)
    small_picture(tmp_path / "mine", "b.png")
    write_labelme(tmp_path / "mine/b.json", {"name": "b", "size": (40, 30)}, shapes)
    cfg = load_config(RETINANET, data=OwnData("mine"))
    instances = dataset(cfg, "val").get_data_info(0)["instances"]
    assert [one["bbox_label"] for one in instances] == [1, 0, 0, 1]
    assert [[round(side, 2) for side in one["bbox"]] for one in instances] == [
        [1, 1, 14, 8],
        [15, 5, 25, 15],
        [32, 21, 37, 25],
        [22, 20, 30, 28],
    ]
    assert len(instances[0]["mask"]) == 2
    assert coco_mask.area(instances[2]["mask"]) == 20
    assert "note: shapes without an area, left out (point): 2 (a.png, b.png)\n" in capsys.readouterr().err


def test_a_picture_is_taken_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for name in ("a", "b"):
        small_picture(tmp_path / "mine/images", f"{name}.jpg", (40, 30), exif)
        (tmp_path / "mine/labels").mkdir(exist_ok=True)
        (tmp_path / f"mine/labels/{name}.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "mine/data.yaml").write_text("names: [all]\n")
    cfg = load_config(RETINANET, data=OwnData("mine"))
    (wanted,) = ([(np.float32((0, 0, 30, 40)).tobytes(), 0, 0)],)
    assert boxes(cfg) == {"a.jpg": wanted, "b.jpg": wanted}


@pytest.mark.parametrize(
    "settings",
    [
        "train: ../train/images\nval: ../valid/images\nnames: [disc, triangle, box, star]",
        "train: /home/me/mine/train/images\nval: [C:\\mine\\valid\\images]\nnames: [disc, triangle, box, star]",
        "path: /data/mine\ntrain: train\nval: valid\nnames: {0: disc, 1: triangle, 2: box, 3: star}",
        "names: [disc, triangle, box, star]",
        "train: train.txt\nval: valid.txt\nnames: [disc, triangle, box, star]",
    ],
)
def test_yolos_data_yaml_is_understood_on_another_machine(splits, tmp_path, settings):
    mine = write("yolo", tmp_path / "written", splits)
    for split, name in (("train", "train"), ("val", "valid")):
        for part in ("images", "labels"):
            (tmp_path / f"mine/{name}").mkdir(parents=True, exist_ok=True)
            (mine / part / split).rename(tmp_path / f"mine/{name}/{part}")
        listed = [f"./{name}/images/{picture['name']}.jpg" for picture in splits[split]]
        (tmp_path / f"mine/{name}.txt").write_text("\n".join(listed))
    (tmp_path / "mine/data.yaml").write_text(settings)
    cfg = load_config(RETINANET, data=OwnData("mine"))
    assert len(dataset(cfg, "val")) == 3
    assert len(boxes(cfg)) == 9


# -- splits and the report ---------------------------------------------------------------------------------------------


def flat_voc(folder, number, names=("cat", "dog")):
    for index in range(number):
        small_picture(folder, f"{index:03}.jpg", (40 + index, 30))
        marks = voc_object(names[index % len(names)], 2, 2, 10, 10)
        (folder / f"{index:03}.xml").write_text(f"<annotation>{marks}</annotation>")
    return folder


def test_a_missing_validation_split_is_a_fifth_chosen_by_name_and_told(tmp_path, capsys):
    flat_voc(tmp_path / "mine", 10)
    first = boxes(load_config(RETINANET, data=OwnData("mine")))
    told = capsys.readouterr().err
    assert "note: pictures that validate, 20% of those for training, chosen by their names: 2 (" in told
    cfg = load_config(RETINANET, data=OwnData("mine"))
    chosen = {info["img_path"][-7:] for info in map(dataset(cfg, "val").get_data_info, range(2))}
    assert len(first) == 10
    flat_voc(tmp_path / "moved/deeper", 10)
    cfg = load_config(RETINANET, data=OwnData("moved"))
    assert {info["img_path"][-7:] for info in map(dataset(cfg, "val").get_data_info, range(2))} == chosen


def test_what_was_found_is_told_and_drawn(splits, tmp_path, capsys):
    mine = write("yolo", tmp_path / "mine", splits)
    labels = sorted((mine / "labels/train").iterdir())
    labels[0].write_text("0 0.5 0.5 0.001 0.5\n1 0.5 0.5 0.5 0.5\n")  # the first box is narrower than a pixel
    labels[1].unlink()
    labels[2].write_text("0 0 0 1 1 0 1\n1 0.9 0.9 1 1\n")  # the second box reaches out of the picture
    (mine / "images/val/copy.jpg").write_bytes((mine / "images/train/t1.jpg").read_bytes())
    load_config(RETINANET, data=OwnData("mine"))
    told = capsys.readouterr().err
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.strip()}
    assert told.startswith(f"{tmp_path}/mine: YOLO's text files, 4 classes, pictures of ")
    assert lines["pictures"] == ["6", "4"]
    assert lines["without"] == ["objects", "2", "2"]
    kept = [picture["objects"] for picture in splits["train"][3:]]
    stars = sum(name == "star" for objects in kept for name, *_ in objects)
    having = sum(any(name == "star" for name, *_ in objects) for objects in kept)
    star = next(line.split() for line in told.splitlines() if line.startswith("- star"))
    assert star[2:5] == [str(stars), "in", str(having)]
    assert "note: boxes narrower than a pixel, left out: 1 (images/train/t1.jpg)\n" in told
    assert "note: boxes that reach out of their picture, clipped when it is resized: 1 (images/train/t3.jpg)\n" in told
    assert "note: pictures that are also in the training split: 1 (images/val/copy.jpg)\n" in told
    drawn = next(tmp_path.glob("work_dirs/data/mine-*/data.png"))
    assert told.rstrip().endswith(f"drawn in {drawn.relative_to(tmp_path)}")
    assert cv2.imread(str(drawn)).shape[0] > 500


def test_an_object_far_out_of_its_picture_is_left_out(splits, tmp_path, capsys):
    mine = write("coco", tmp_path / "mine", splits)
    path = mine / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[0, 0, 1e9, 0, 1e9, 1e9]]  # drawing it would take 1e18 pixels
    path.write_text(json.dumps(content))
    load_config(SEMANTIC_FPN, data=OwnData("mine", background="extra"))
    assert (
        "note: objects that reach far out of their picture, left out: 1 (train2017/t1.jpg)\n" in capsys.readouterr().err
    )


def test_the_data_folder_stays_as_it_is_and_a_change_of_it_makes_new_files(splits, tmp_path):
    mine = write("labelme", tmp_path / "mine", splits)
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    first = load_config(RETINANET, data=OwnData("mine")).train_dataloader.dataset.ann_file
    assert load_config(RETINANET, data=OwnData("mine")).train_dataloader.dataset.ann_file == first
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before
    content = Path(first).read_text()
    write_labelme(mine / "train/t1.json", splits["train"][0], [])
    changed = load_config(RETINANET, data=OwnData("mine")).train_dataloader.dataset.ann_file
    assert changed != first
    assert Path(first).read_text() == content
    found = [len(json.loads(text)["annotations"]) for text in (content, Path(changed).read_text())]
    assert found[0] - found[1] == len(splits["train"][0]["objects"]) > 0


def test_pictures_without_annotations_are_not_used_and_told(splits, made, tmp_path, capsys):
    for kind in ("coco", "voc", "labelme"):
        small_picture(write(kind, tmp_path / kind, splits), "more.jpg")
        load_config(RETINANET, data=OwnData(kind))
        assert "note: pictures without annotations, not used: 1 (more.jpg)\n" in capsys.readouterr().err
    small_picture(write_label_maps_with_classes(tmp_path / "maps", made) / "images", "more.jpg")
    load_config(SEMANTIC_FPN, data=OwnData("maps", background="ignore"))
    assert "note: pictures without annotations, not used: 1 (images/more.jpg)\n" in capsys.readouterr().err


# -- configs -----------------------------------------------------------------------------------------------------------


def test_every_config_takes_the_classes(splits, made, tmp_path):
    folders = {
        "detection": OwnData(write("coco", tmp_path / "coco", splits)),
        "segmentation": OwnData(write_label_maps_with_classes(tmp_path / "maps", made), background="ignore"),
    }
    for name in list_configs():
        task = name.partition("/")[0]
        if task not in folders:
            continue
        cfg = load_config(name, data=folders[task])
        number = 4 if task == "detection" else 5
        heads = [cfg.model.get(key) for key in ("bbox_head", "decode_head", "auxiliary_head")]
        roi_head = cfg.model.get("roi_head") or {}
        heads += [roi_head.get(key) for key in ("bbox_head", "mask_head")]
        assert [head.num_classes for head in heads if head] == [number] * sum(map(bool, heads))
        assert any(heads)
        for split in ("train", "val", "test"):
            data = cfg[f"{split}_dataloader"].dataset
            assert len(data.metainfo.classes) == len({*map(tuple, data.metainfo.palette)}) == number
            assert data.data_root == str(tmp_path / ("coco" if task == "detection" else "maps"))


def test_other_configs_take_the_classes_in_all_heads_and_keep_their_wrappers(splits, tmp_path):
    (tmp_path / "other.py").write_text(
        """
_base_ = "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"
model = dict(rpn_head=dict(num_classes=1), backbone=dict(init_cfg=None))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=3,
        dataset=dict(
            type="ConcatDataset",
            datasets=[
                dict(type="CocoDataset", filter_cfg=dict(min_size=8), pipeline=_base_.train_pipeline),
                dict(type="CocoDataset", ann_file="b.json", pipeline=[]),
            ],
        ),
    )
)
val_evaluator = dict(classwise=True)
"""
    )
    cfg = load_config("other.py", data=OwnData(write("coco", tmp_path / "mine", splits)))
    heads = [*cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head]
    assert [head.num_classes for head in heads] == [4] * 4
    assert cfg.model.rpn_head.num_classes == 1
    data = dataset(cfg, "train")
    assert len(data) == 18
    assert data.dataset.filter_cfg == dict(min_size=8)
    assert cfg.val_evaluator.classwise
    assert cfg.val_evaluator.metric == ["bbox", "segm"]
    assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file


def test_weights_of_classes_are_fitted(splits, tmp_path):
    (tmp_path / "mine.py").write_text(
        f"""
_base_ = "{load_config(RETINANET).filename}"
model = dict(bbox_head=dict(loss_cls=dict(class_weight=[1.0] * 80 + [0.1]), other=dict(class_weight=[*range(80)])))
"""
    )
    cfg = load_config("mine.py", data=OwnData(write("coco", tmp_path / "mine", splits)))
    assert cfg.model.bbox_head.loss_cls.class_weight == [1.0] * 4 + [0.1]
    assert cfg.model.bbox_head.other.class_weight is None


# -- segmentation ------------------------------------------------------------------------------------------------------


def write_label_maps_with_classes(folder, made, classes=SEMANTIC_CLASSES):
    write_label_maps(folder, made)
    (folder / "classes.txt").write_text("\n".join(classes))
    return folder


def targets(cfg, split="train"):
    """Return the label maps as a model gets them, by the pictures' names."""
    loading = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
    for step in cfg[f"{split}_dataloader"].dataset.pipeline:
        if step.type == "LoadAnnotations":
            loading[1] = step
    cfg[f"{split}_dataloader"].dataset.pipeline = loading
    items = [item["data_samples"] for item in dataset(cfg, split)]
    return {item.img_path.rpartition("/")[2]: item.gt_sem_seg.data.numpy()[0] for item in items}


@pytest.mark.stack
@pytest.mark.parametrize(
    ("background", "listed", "classes", "mapping"),
    [
        ("ignore", SEMANTIC_CLASSES, SEMANTIC_CLASSES, lambda label: np.where(label == 0, 255, label.astype(int) - 1)),
        ("extra", SEMANTIC_CLASSES, ("background", *SEMANTIC_CLASSES), lambda label: label),
        ("listed", ("none", *SEMANTIC_CLASSES), ("none", *SEMANTIC_CLASSES), lambda label: label),
    ],
)
def test_the_label_0_is_what_the_option_says(made, tmp_path, background, listed, classes, mapping):
    write_label_maps_with_classes(tmp_path / "mine", made, listed)
    cfg = load_config(UPERNET, data=OwnData("mine", background=background))
    assert cfg.train_dataloader.dataset.metainfo.classes == classes
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == len(classes)
    for split, folder in (("train", "training"), ("val", "validation")):
        found = targets(cfg, split)
        assert len(found) == {"train": 6, "val": 3}[split]
        for name, labels in found.items():
            given = cv2.imread(str(tmp_path / f"mine/masks/{folder}/{name[:-4]}.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(labels, mapping(given))


def test_pictures_with_different_endings_are_one_data_set(tmp_path):
    for folder in ("mine/images", "mine/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for index, ending in enumerate(("jpg", "png", "jpg", "png", "jpg")):
        small_picture(tmp_path / "mine/images", f"{index}.{ending}")
        Image.fromarray(np.full((30, 40), index % 2, np.uint8)).save(tmp_path / f"mine/masks/{index}_mask.png")
    (tmp_path / "mine/classes.txt").write_text("even\nodd\n")
    cfg = load_config(SEMANTIC_FPN, data=OwnData("mine", background="listed"))
    found = {}
    for split in ("train", "val"):
        data = dataset(cfg, split)
        for index in range(len(data)):
            info = data.get_data_info(index)
            found[info["img_path"]] = info["seg_map_path"]
    assert found == {
        f"{tmp_path}/mine/images/{index}.{ending}": f"{tmp_path}/mine/masks/{index}_mask.png"
        for index, ending in enumerate(("jpg", "png", "jpg", "png", "jpg"))
    }


@pytest.mark.parametrize(("background", "classes"), [("extra", ("background", *CLASSES)), ("ignore", CLASSES)])
def test_polygons_become_label_maps(splits, tmp_path, background, classes):
    cfg = load_config(SEMANTIC_FPN, data=OwnData(write("coco", tmp_path / "mine", splits), background=background))
    assert cfg.train_dataloader.dataset.metainfo.classes == classes
    found = targets(cfg)
    for picture in splits["train"]:
        labels = found[f"{picture['name']}.jpg"]
        covered = np.zeros(labels.shape, bool)
        for name, box, polygon in picture["objects"]:
            x, y, width, height = box
            code = coco_mask.merge(coco_mask.frPyObjects([polygon], *labels.shape))
            covered |= coco_mask.decode(code) > 0
            assert (labels[y : y + height, x : x + width] == classes.index(name)).any()
        assert ((labels != (0 if background == "extra" else 255)) == covered).all()


def test_a_smaller_object_is_above_a_larger_one(tmp_path):
    square = [[[10, 10], [20, 10], [20, 20], [10, 20]], [[0, 0], [30, 0], [30, 30], [0, 30]]]
    for order in (1, -1):
        for name in ("a", "b"):
            small_picture(tmp_path / f"mine{order}", f"{name}.jpg")
            shapes = [labelme_shape(*one) for one in zip(("inner", "outer"), square, strict=True)][::order]
            write_labelme(tmp_path / f"mine{order}/{name}.json", {"name": name, "size": (40, 30)}, shapes)
        (labels,) = targets(load_config(SEMANTIC_FPN, data=OwnData(f"mine{order}", background="ignore"))).values()
        assert labels[15, 15] == 0 and labels[5, 5] == 1 and labels[5, 35] == 255


# -- from one end to the other -----------------------------------------------------------------------------------------

ONCE = [
    *IN_PROCESS,
    "model.backbone.init_cfg=None",
    "model.backbone.norm_eval=False",
    "train_dataloader.batch_size=2",
]


@pytest.mark.stack
def test_a_training_on_ones_own_data_can_be_tested_with_what_it_wrote(splits, tmp_path):
    write("yolo", tmp_path / "mine", splits)
    (tmp_path / "detector.py").write_text(DETECTOR)
    small = [
        f"{split}_dataloader.dataset.pipeline.{step}.scale=(128,128)" for split, step in (("train", 2), ("val", 1))
    ]
    quick = [*ONCE, *small, "test_dataloader.dataset.pipeline.1.scale=(128,128)", "train_cfg.max_epochs=1"]
    scores = ["model.test_cfg.score_thr=0.0"]  # an untrained model is sure of nothing
    done = run_tool("train", "detector.py", "--data", "mine", "--cfg-options", *quick, *scores, cwd=tmp_path)
    validated = re.findall(r"coco/bbox_mAP\w*: [-\d.]+", succeed(done))
    assert "YOLO's text files, 4 classes" in done.stderr
    folder = tmp_path / "work_dirs/detector"
    assert (folder / "data.png").is_file()
    tested = succeed(run_tool("test", folder / "detector.py", folder / "epoch_1.pth", cwd=tmp_path))
    assert re.findall(r"coco/bbox_mAP\w*: [-\d.]+", tested) == validated
    assert len(validated) == 6


def test_browse_shows_ones_own_label_maps(made, tmp_path, in_process):
    write_label_maps_with_classes(tmp_path / "mine", made)
    (tmp_path / "segmentor.py").write_text(SEGMENTOR)
    options = ["--data", "mine", "--background", "ignore", "--not-show", "--output-dir", "out", "--number", 2]
    status, printed = in_process(browse_dataset.main, "browse", "segmentor.py", *options)
    assert status == 0, printed.err
    assert len([*(tmp_path / "out").iterdir()]) == 2
    assert "label maps, 5 classes" in printed.err


def test_browse_writes_each_of_two_pictures_of_the_same_name(splits, tmp_path, in_process):
    write("coco", tmp_path / "mine", splits)
    (pictures := tmp_path / "mine/train2017").joinpath("more").mkdir()
    file = tmp_path / "mine/annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    one, other = content["images"][:2]
    (pictures / other["file_name"]).rename(pictures / "more" / one["file_name"])
    other["file_name"] = f"more/{one['file_name']}"
    file.write_text(json.dumps(content))
    status, printed = in_process(
        browse_dataset.main, "browse", RETINANET, "--data", "mine", "--not-show", "--output-dir", "out"
    )
    assert status == 0, printed.err
    name = one["file_name"]
    assert {path.name for path in (tmp_path / "out").glob(f"*{name}")} == {name, f"1_{name}"}


def test_a_printed_config_is_whole_with_options_last(splits, tmp_path, in_process):
    write("voc", tmp_path / "mine", splits)
    options = ["--data", "mine", "--cfg-options", "model.bbox_head.num_classes=7"]
    status, printed = in_process(print_config.main, "config", RETINANET, *options)
    assert status == 0
    cfg = Config.fromstring(printed.out, ".py")
    assert cfg.model.bbox_head.num_classes == 7
    assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file
    assert len(coco_content(splits["val"], CLASSES)["images"]) == len(
        json.loads(Path(cfg.val_evaluator.ann_file).read_text())["images"]
    )


def test_the_test_split_is_what_is_tested(splits, tmp_path):
    write("roboflow", tmp_path / "mine", {**splits, "test": splits["val"][:1]})
    cfg = load_config(RETINANET, data=OwnData("mine"))
    assert cfg.test_evaluator.ann_file.endswith("test.json")
    assert len(dataset(cfg, "test")) == 1
    assert len(dataset(cfg, "val")) == 3
    put(splits["val"][0], tmp_path / "mine/test")  # as it was
