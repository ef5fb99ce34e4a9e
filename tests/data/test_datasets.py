"""The way to the datasets in a config: through every wrapper, to what stands in the config itself."""

from mmengine.config import Config

from mmcare.data import innermost_datasets


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
