"""Finding parts of a config: datasets inside all wrappers, and all notations of pretrained weights."""

import pytest
from helpers import DETECTION
from mmengine.config import Config
from mmengine.model import PretrainedInit

from mmcare.data import innermost_datasets
from mmcare.data.sample import overlay_sample


def test_datasets_are_found_inside_their_wrappers_in_order():
    first, second, third = (dict(type="CocoDataset", ann_file=f"{name}.json") for name in "abc")
    repeated = dict(type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[first, second]))
    cfg = Config(dict(dataset=dict(type="ConcatDataset", datasets=[repeated, third])))
    assert [dataset.ann_file for dataset in innermost_datasets(cfg.dataset)] == ["a.json", "b.json", "c.json"]
    for dataset in innermost_datasets(cfg.dataset):
        dataset.pipeline = ["changed"]
    assert str(cfg.to_dict()).count("changed") == 3


def test_a_dataset_without_a_wrapper_comes_alone_and_none_gives_none():
    dataset = dict(type="CocoDataset")
    assert [*innermost_datasets(dataset)] == [dataset]
    assert [*innermost_datasets(dict(dataset, dataset=None, datasets=[]))] == [dict(dataset, dataset=None, datasets=[])]
    assert [*innermost_datasets(None)] == []


KAIMING = dict(type="Kaiming", layer="Conv2d")


@pytest.mark.parametrize("kind", ["Pretrained", "PretrainedInit", "mmengine.PretrainedInit", PretrainedInit])
def test_the_sample_data_takes_out_pretrained_weights_and_nothing_else(kind, tmp_path):
    pretrained = dict(type=kind, checkpoint="weights.pth")
    cfg = Config.fromfile(DETECTION)
    cfg.model.backbone.init_cfg = pretrained
    cfg.model.neck.init_cfg = [KAIMING, pretrained]
    cfg.model.bbox_head.init_cfg = KAIMING
    overlay_sample(cfg, tmp_path)
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.neck.init_cfg == [KAIMING]
    assert cfg.model.bbox_head.init_cfg == KAIMING
