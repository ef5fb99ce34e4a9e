"""Subjects by name: backbones, configs and peers, alone and in a config."""

import pytest
import torch
from helpers import CONFIGS, DETECTOR
from torch import nn

from mmcare import UserError
from mmcare.benchmark import build, resolve


@pytest.mark.stack
@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    # Million parameters of the backbone and GMACs at 224²; with the classifier the papers have 4.1, 4.4, 2.0 and 0.3.
    [("resnet50", 23.51, 4.09), ("swin-t", 27.52, 4.5), ("pvtv2-b1", 13.50, 2.1), ("mobilenetv2", 2.22, 0.30)],
)
def test_the_peers_are_what_their_papers_say(name, parameters, gmacs, make_steps):
    subject = resolve(name)
    measured, macs = subject.cost("backbone", 224, 224)
    assert measured / 1e6 == pytest.approx(parameters, abs=0.005)
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.03)
    (step,) = make_steps(subject, ["plain", "channels-last"], (64, 96))
    assert [tuple(output.shape[2:]) for output in step.forward()] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(("peer", "widths"), [("swin-t", [96, 192, 384, 768]), ("mobilenetv2", [24, 32, 96, 1280])])
def test_a_peer_in_a_config(peer, widths, tmp_path, make_steps):
    (tmp_path / "detector.py").write_text(DETECTOR)
    own, other = (resolve(f"{tmp_path}/detector.py{ending}") for ending in ("", f"@{peer}"))
    alone = resolve(peer)
    assert other.cost("backbone", 64, 96) == alone.cost("backbone", 64, 96)
    assert list(other.model.neck.in_channels) == widths
    heads = [sum(value.numel() for value in subject.model.bbox_head.parameters()) for subject in (own, other)]
    assert heads[0] == heads[1]
    whole, backbone = make_steps(other, ["eager"], (64, 96), batch=2, training=True)
    whole()
    assert not any(module.training for module in whole.model.modules() if isinstance(module, nn.BatchNorm2d))
    assert (whole.case.part, backbone.case.part) == ("whole", "backbone")
    assert [tuple(output.shape[:2]) for output in whole.forward()[:1]] == [(2, 9 * 80)]
    first, second = backbone.forward(), backbone.forward()
    assert len(first) == 4
    assert all(map(torch.equal, first, second)), "stochastic depth makes each call another"


def test_a_peer_gives_the_maps_that_the_config_takes(make_steps):
    subject = resolve(f"{CONFIGS}/detection/retinanet_casvit_m.py@mobilenetv2")
    assert list(subject.model.neck.in_channels) == [32, 96, 1280]
    _, backbone = make_steps(subject, ["eager"], (64, 64))
    assert [tuple(output.shape[1:]) for output in backbone.forward()] == [(32, 8, 8), (96, 4, 4), (1280, 2, 2)]


def test_arguments_of_a_backbone_in_its_name():
    assert build("mmcare.CARE:s0,with_cp=True")[0].with_cp is True
    assert build("mmdet.ResNet:depth=18,style=caffe")[0].style == "caffe"
    with pytest.raises(UserError, match=r"^mmcare.CARE:s0,2 has '2' instead of KEY=VALUE: give, for example, mmcare"):
        build("mmcare.CARE:s0,2")


def test_a_name_has_the_same_weights_each_time():
    first, second = (resolve("mobilenetv2").model.state_dict() for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)
