"""Missing files are reported all at once, and existing or remote files are not."""

from pathlib import Path

import pytest
from helpers import DETECTION
from mmengine.config import Config
from mmengine.model import PretrainedInit

from mmcare import UserError
from mmcare.cli import config_parser, parse_cfg_options
from mmcare.runs import check_inputs


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def coco(**changes):
    dataset = dict(
        type="CocoDataset", data_root="coco/", ann_file="ann/train.json", data_prefix=dict(img="train/"), **changes
    )
    return Config(dict(train_dataloader=dict(dataset=dataset), model=dict(type="RetinaNet")))


def make_coco():
    for path in (Path("coco/ann/train.json"), Path("coco/train/1.jpg")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")


def complaint(cfg, splits=("train",), weights=False):
    with pytest.raises(UserError) as caught:
        check_inputs(cfg, splits, weights)
    return str(caught.value)


def test_everything_missing_is_in_one_message():
    message = complaint(Config.fromfile(DETECTION), ("train", "val"), weights=True)
    for path in (
        "data/coco/annotations/instances_train2017.json",
        "data/coco/train2017/",
        "data/coco/annotations/instances_val2017.json",
        "data/coco/val2017/",
        "checkpoints/CARETrans_S1.pth.tar",
    ):
        assert message.count(f"  {path}: ") == 1
    for way_on in ("cocodataset.org", "CARE-Transformer", "--sample", "--cfg-options model.backbone.init_cfg=None"):
        assert way_on in message
    assert str(Path.cwd()) in message


def test_ones_own_data_is_not_taken_for_coco():
    assert "coco/ann/train.json: COCO 2017's annotations" in complaint(coco())
    message = complaint(coco(metainfo=dict(classes=("coin", "box"))))
    assert "coco/ann/train.json: CocoDataset's annotations to train on, missing\n" in message
    assert "cocodataset.org" not in message


def test_only_what_the_run_reads_is_looked_for():
    cfg = Config.fromfile(DETECTION)
    message = complaint(cfg, ("test",))
    assert "val2017" in message
    assert "train2017" not in message
    assert "CARETrans" not in message
    assert "init_cfg" not in message


def test_the_spelling_that_the_message_offers_works():
    cfg = Config.fromfile(DETECTION)
    args = config_parser("").parse_args([str(DETECTION), "--cfg-options", "model.backbone.init_cfg=None"])
    cfg.merge_from_dict(parse_cfg_options(args.cfg_options))
    assert cfg.model.backbone.init_cfg is None
    assert "CARETrans" not in complaint(cfg, ("train",), weights=True)


def test_complete_data_passes():
    make_coco()
    check_inputs(coco(), ("train", "val"), weights=True)


WEIGHTS = dict(type="Pretrained", checkpoint="casvit.pth")


@pytest.mark.parametrize("init", [WEIGHTS, dict(WEIGHTS, type=PretrainedInit), [dict(type="Kaiming"), WEIGHTS]])
def test_missing_weights_alone_do_not_suggest_the_sample_data(init):
    make_coco()
    cfg = coco()
    cfg.model.backbone = dict(type="mmcare.CASViT", init_cfg=init)
    message = complaint(cfg, weights=True)
    assert "Tianfang-Zhang/CAS-ViT" in message
    assert "--sample" not in message
    Path("casvit.pth").write_text("weights")
    check_inputs(cfg, ("train",), weights=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda dataset: dict(type="RepeatDataset", times=2, dataset=dataset),
        lambda dataset: dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=dataset),
        lambda dataset: dict(type="ConcatDataset", datasets=[dict(type="Other"), dataset]),
        lambda dataset: dict(type="MultiImageMixDataset", dataset=dict(type="RepeatDataset", dataset=dataset)),
    ],
)
def test_wrapped_datasets_are_looked_into(wrap):
    cfg = coco()
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset.to_dict())
    assert "coco/ann/train.json" in complaint(cfg)
    make_coco()
    check_inputs(cfg, ("train",), weights=False)


@pytest.mark.parametrize(
    "changes",
    [
        dict(data_root="s3://bucket/coco/"),
        dict(data_root="", ann_file="https://host/train.json", data_prefix=dict(img="https://host/train")),
        dict(backend_args=dict(backend="petrel")),
    ],
)
def test_data_elsewhere_is_left_alone(changes):
    cfg = coco()
    cfg.train_dataloader.dataset.update(changes)
    cfg.model.backbone = dict(init_cfg=dict(type="Pretrained", checkpoint="https://host/weights.pth"))
    check_inputs(cfg, ("train",), weights=True)


def test_absolute_paths_ignore_the_root(tmp_path):
    make_coco()
    cfg = coco()
    cfg.train_dataloader.dataset.update(
        data_root="nowhere",
        ann_file=str(tmp_path / "coco/ann/train.json"),
        data_prefix=dict(img=str(tmp_path / "coco/train")),
    )
    check_inputs(cfg, ("train",), weights=False)


@pytest.mark.parametrize("evaluator", [lambda metric: metric, lambda metric: [dict(type="Other"), metric]])
def test_annotations_of_the_evaluator(evaluator):
    make_coco()
    cfg = coco()
    cfg.train_evaluator = evaluator(dict(type="CocoMetric", ann_file="elsewhere/val.json"))
    assert "elsewhere/val.json" in complaint(cfg)


def damage_link():
    Path("coco").symlink_to("/mnt/unplugged/coco")


def damage_empty_file():
    make_coco()
    Path("coco/ann/train.json").write_text("")


def damage_empty_folder():
    make_coco()
    Path("coco/train/1.jpg").unlink()


def damage_kinds():
    make_coco()
    Path("coco/train/1.jpg").unlink()
    Path("coco/train").rmdir()
    Path("coco/train").write_text("")
    Path("coco/ann/train.json").unlink()
    Path("coco/ann/train.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_link, ["coco is a link to /mnt/unplugged/coco, which does not exist"]),
        (damage_empty_file, ["an empty file"]),
        (damage_empty_folder, ["an empty folder"]),
        (damage_kinds, ["a file where a folder is expected", "a folder where a file is expected"]),
    ],
)
def test_what_is_wrong_with_a_path_is_told(damage, told):
    damage()
    message = complaint(coco())
    assert all(part in message for part in told)
