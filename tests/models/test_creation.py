"""mmcare.create_backbone: the published networks by name, in plain PyTorch code."""

import re

import pytest
import torch
from helpers import ARCHS, ROOT, backbone_weights, expected, image, relative_error, weights

import mmcare

NAMES = [f"{family.lower()}_{arch}" for family, arch in ARCHS]
README = (ROOT / "README.md").read_text()


def test_the_names_are_those_of_the_published_networks():
    assert mmcare.list_backbones() == NAMES


@pytest.mark.parametrize(("family", "arch"), ARCHS)
def test_a_name_and_a_file_give_the_authors_network(family, arch, tmp_path):
    torch.save({"state_dict": backbone_weights(family, arch)}, tmp_path / "weights.pth")
    backbone = mmcare.create_backbone(f"{family.lower()}_{arch}", pretrained=tmp_path / "weights.pth").eval()
    with torch.no_grad():
        maps = backbone(image())
    assert all(relative_error(found, wanted) < 1e-5 for found, wanted in zip(maps, expected(family, arch), strict=True))


@pytest.mark.parametrize("name", ["care_s0", "casvit_xs"])
def test_without_a_file_the_weights_are_those_of_init_weights(name, log):
    torch.manual_seed(0)
    backbone = mmcare.create_backbone(name)
    assert not any("stem." in message for message in log)  # MMEngine would print a paragraph for each parameter
    torch.manual_seed(0)
    other = type(backbone)(name.rpartition("_")[2])
    other.init_weights()
    weights = other.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())


def test_its_norms_learn_as_in_plain_pytorch_unless_told_not_to():
    for arguments, fixed in (({}, False), (dict(norm_eval=True), True)):
        backbone = mmcare.create_backbone("care_s0", **arguments).train()
        before = backbone.stem.norm.running_mean.clone()
        backbone(image())
        assert torch.equal(before, backbone.stem.norm.running_mean) == fixed


def test_arguments_reach_the_network():
    backbone = mmcare.create_backbone(
        "care_s0", features_only=True, in_channels=1, out_indices=(1, 3), drop_path_rate=0.2
    )
    assert backbone.drop_path_rate == 0.2
    assert [tuple(feature.shape) for feature in backbone(torch.zeros(2, 1, 64, 64))] == [(2, 64, 8, 8), (2, 1024, 2, 2)]
    assert backbone.out_channels == (64, 1024)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("care_s9", {}, "mmcare has no backbone 'care_s9': did you mean care_s"),
        ("resnet50", {}, f"mmcare has no backbone 'resnet50': choose one of {', '.join(NAMES)}"),
        ("care_s0", dict(in_chans=1), "create_backbone('care_s0') takes no in_chans: did you mean in_channels?"),
        (
            "care_s0",
            dict(num_classes=10),
            "create_backbone('care_s0') takes no num_classes: it takes pretrained, ",
        ),
        ("care_s0", dict(pretrained=True), "pretrained=True names no weights for care_s0, and mmcare downloads none"),
        ("care_s0", dict(features_only=False), "features_only=False asks for a classifier, and care_s0 is a backbone"),
        ("care_s0", dict(pretrained="gone.pth"), "there is no checkpoint gone.pth"),
        ("care_s0", dict(out_indices=(4,)), "an index in out_indices=4 is not valid"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(name, arguments, message):
    with pytest.raises(mmcare.UserError) as raised:
        mmcare.create_backbone(name, **arguments)
    assert str(raised.value).startswith(message)


def test_the_readmes_training_loop_runs_and_learns(tmp_path, monkeypatch):
    (loop,) = (block for block in re.findall(r"```python\n(.+?)```", README, re.DOTALL) if "create_backbone" in block)
    assert set(re.findall(r"^(?:import|from) (\w+)", loop, re.MULTILINE)) == {"mmcare", "torch"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": weights("CARE", "s1", "classifier")}, "checkpoints/CARETrans_S1.pth.tar")
    images, labels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    losses = []
    for steps in (1, 3):
        torch.manual_seed(0)  # the same classifier and dropped paths in both
        exec(loop, variables := {"loader": [(images, labels)] * steps})
        losses.append(variables["loss"].item())
    assert losses[1] < losses[0]
