import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import SEGMENTOR, run_tool, succeed, write_ground
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmcare
from mmcare.data.sample import overlay_sample


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    """Train the tiny detector on eight pictures.

    Returns:
        ``folder``; ``options`` with which it is tested on the eight; ``checkpoint``; ``pictures``, a folder with the
        eight; and ``annotations``, their file.
    """
    folder = tmp_path_factory.mktemp("inference")
    options = write_ground(folder)
    succeed(run_tool("train", "detector.py", "--sample", *options, cwd=folder))
    annotations = folder / "eight.json"
    (data,) = folder.glob("data/sample/*")
    (folder / "pictures").mkdir()
    for image in json.loads(annotations.read_text())["images"]:
        shutil.copy(data / "coco/train2017" / image["file_name"], folder / "pictures")
    return SimpleNamespace(
        folder=folder,
        data=data,
        options=options,
        checkpoint=folder / "work_dirs/detector/epoch_6.pth",
        pictures=folder / "pictures",
        annotations=annotations,
    )


@pytest.fixture(scope="session")
def untrained(ground):
    """Write a checkpoint of a tiny model that was not trained, as MMEngine does; return its path."""

    def untrained(name, text):
        path = ground.folder / f"{name}.py"
        path.write_text(text)
        cfg = Config.fromfile(path)
        overlay_sample(cfg, ground.data)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
            model.init_weights()
        meta = {"cfg": cfg.pretty_text, "dataset_meta": cfg.test_dataloader.dataset.metainfo.to_dict()}
        torch.save({"meta": meta, "state_dict": model.state_dict()}, ground.folder / f"{name}.pth")
        return ground.folder / f"{name}.pth"

    return untrained


@pytest.fixture(scope="session")
def segmentor(untrained):
    return untrained("segmentor", SEGMENTOR)


@pytest.fixture(scope="session")
def detector(ground):
    """Return a Predictor of the trained detector."""
    return mmcare.Predictor(ground.checkpoint)
