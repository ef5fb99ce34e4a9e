"""A training ends at the first loss that is not finite, before it damages the weights."""

import re
from copy import deepcopy

import pytest
import torch
from helpers import DETECTOR, IN_PROCESS, load_tool
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from mmcare import UserError
from mmcare.data.sample import prepare


class Toy(BaseModel):
    """A model with one weight, whose losses are given by the images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        product = self.weight * torch.stack(inputs)
        losses = {"loss_plain": product.mean(), "loss_list": [product.sum(), product.norm()], "acc": product.sum() / 0}
        return losses if mode == "loss" else inputs


def image(value, **meta):
    return dict(inputs=torch.tensor([value]), data_samples=BaseDataElement(metainfo=meta))


def toy_runner(work_dir, images, model=None):
    return Runner(
        model=model or Toy(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=images,
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        custom_hooks=[dict(type="mmcare.FiniteLossHook")],
        experiment_name=work_dir.parent.name,
        cfg=Config(),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_before_its_step(tmp_path, value):
    images = [image(1.0, img_path="a.jpg"), image(1.0, img_path="b.jpg"), image(1.0, img_path="c.jpg")]
    images += [image(value, img_path="d.jpg")]
    runner = toy_runner(tmp_path / "run", images)
    with pytest.raises(UserError) as raised:
        runner.train()
    told = r"iteration 2 \(epoch 1\) gave loss_plain = \S+, loss_list = \S+ for the images c.jpg, d.jpg, so .*--resume"
    assert re.fullmatch(told, str(raised.value))
    assert runner.iter == 1
    assert runner.model.weight.isfinite().all()
    assert not runner.model.weight.equal(torch.ones(1))  # the first optimizer step was taken


def test_images_without_paths(tmp_path):
    with pytest.raises(UserError, match=r"iteration 1 .* loss_list = nan for images without a path in the pipeline"):
        toy_runner(tmp_path / "run", [image(float("nan"))]).train()


def test_finite_losses_train_whatever_the_metrics_beside_them(tmp_path):
    runner = toy_runner(tmp_path / "run", [image(1.0)])
    runner.train()
    assert runner.epoch == 2
    assert (tmp_path / "run/epoch_2.pth").exists()
    deepcopy(runner.model)  # as MMEngine's EMAHook does before a test; it fails if the model refers to the Runner


class Steep(Toy):
    """A model whose loss is 0 and whose gradient is not a number."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return {"loss": (self.weight - 1).abs().sqrt().sum()}


def test_spoiled_weights_are_not_saved(tmp_path):
    runner = toy_runner(tmp_path / "run", [image(1.0)], Steep())
    told = r"after iteration 1 1 of the weights and statistics are not finite \(weight\), .*--resume"
    with pytest.raises(UserError, match=told):
        runner.train()
    assert list(tmp_path.glob("run/*.pth")) == []


class Normed(Toy):
    """A model whose images make only a batch norm's running variance infinite, by overflow."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        self.norm(torch.stack(inputs))
        return {"loss": self.weight.square().sum()}


def test_spoiled_statistics_are_not_saved(tmp_path):
    runner = toy_runner(tmp_path / "run", [image(3e38), image(-3e38)], Normed())
    with pytest.raises(UserError, match=r"statistics are not finite \(norm.running_var\)"):
        runner.train()
    assert list(tmp_path.glob("run/*.pth")) == []


def test_a_buffer_that_is_infinite_from_the_start_is_saved(tmp_path):
    toy_runner(tmp_path / "run", [image(1.0), image(2.0)], Normed()).train()
    assert (tmp_path / "run/epoch_2.pth").exists()


@pytest.mark.stack
def test_training_with_far_too_large_a_learning_rate(tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the tool sets it; monkeypatch restores it
    prepare()
    (tmp_path / "detector.py").write_text(DETECTOR)
    settings = [
        "optim_wrapper.optimizer.lr=1e30",
        "train_dataloader.dataset.indices=4",
        "train_dataloader.batch_size=2",
    ]
    options = ["--sample", "--work-dir", "run", "--cfg-options", *IN_PROCESS, *settings]
    told = refusal(load_tool("train").main, "train", "detector.py", *options)
    assert re.match(
        r"iteration 2 \(epoch 1\) gave loss_cls = (nan|inf), .*for the images \S+\.jpg, \S+\.jpg, so ", told
    )
    assert list(tmp_path.glob("run/*.pth")) == []
