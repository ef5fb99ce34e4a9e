"""tools/get_flops.py: figures from the papers and from hand calculation, and error messages."""

from functools import partial

import pytest
import torch
from helpers import ROOT, load_tool
from mmengine.registry import MODELS
from torch import nn

from mmcare import UserError
from mmcare.benchmark import count
from mmcare.models.care import LinearAttention

# Million parameters, and GMACs at 224² and 512². CAS-ViT's GMACs include the classifier's heads, at most 0.001.
FIGURES = {
    "mmcare.CARE:s0": (5.29, 0.72, 3.74),
    "mmcare.CARE:s1": (7.55, 1.03, 5.36),
    "mmcare.CARE:s2": (16.40, 1.92, 10.03),
    "mmcare.CASViT:xs": (2.76, 0.55, 2.85),
    "mmcare.CASViT:s": (5.25, 0.91, 4.76),
    "mmcare.CASViT:m": (11.65, 1.86, 9.71),
    "mmcare.CASViT:t": (20.74, 3.56, 18.57),
}


@pytest.fixture
def tool(monkeypatch, in_process):
    """Run the tool in this process, as the command line would; return its exit status and its output."""
    monkeypatch.chdir(ROOT)
    return partial(in_process, load_tool("get_flops").main, "get_flops.py")


def figures(out):
    """Return {part: (million parameters, GMACs)} from the tool's output."""
    rows = [line.rsplit(maxsplit=4) for line in out.splitlines() if line.endswith(" G")]
    return {name: (float(parameters), float(macs)) for name, parameters, _, macs, _ in rows}


@pytest.mark.stack
@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_a_backbone(name):
    kind, _, arch = name.partition(":")
    backbone = MODELS.build(dict(type=kind, arch=arch))
    backbone.eval()
    parameters, small, large = FIGURES[name]
    for side, expected in ((224, small), (512, large)):
        ((_, measured, macs),) = count(backbone, side, side)
        assert measured / 1e6 == pytest.approx(parameters, abs=0.005)
        assert macs / 1e9 == pytest.approx(expected, abs=0.0055)


def test_a_convolution_counts_its_products_once():
    assert count(nn.Conv2d(3, 8, 3, stride=2), 32, 48) == [("backbone", 8 * 3 * 9 + 8, 8 * 3 * 9 * 15 * 23)]


def test_the_products_of_linear_attention_count():
    positions, width = 32 * 48, 3
    projection = width * 2 * width
    context = 2 * width * width  # keys with values, and their product with the queries
    normalizer = width
    ((_, _, macs),) = count(LinearAttention(width, head_channels=width), 32, 48)
    assert macs == positions * (projection + context + normalizer)


def test_counting_leaves_the_model_as_it_was():
    backbone = MODELS.build(dict(type="mmcare.CARE", arch="s0"))
    backbone.eval()
    image = torch.ones(1, 3, 32, 32)
    with torch.no_grad():
        before = backbone(image)[-1]
        count(backbone, 512, 512)
        assert torch.equal(backbone(image)[-1], before)


def test_a_detector_is_counted_at_the_size_it_is_padded_to(tool):
    status, said = tool("configs/detection/retinanet_care_s1.py")
    assert status == 0
    title, *_ = said.out.splitlines()
    assert title == "configs/detection/retinanet_care_s1.py for one image of 800×1333, padded to 800×1344"
    rows = figures(said.out)
    assert list(rows) == ["backbone", "neck", "bbox_head", "whole model"]
    assert rows["backbone"][0] == 7.548
    # The backbone is linear in the positions, and 800×1344 has 4.1016 times those of 512².
    assert rows["backbone"][1] == pytest.approx(5.363 * 800 * 1344 / 512**2, rel=1e-3)
    for column in (0, 1):
        assert rows["whole model"][column] == pytest.approx(
            sum(row[column] for row in list(rows.values())[:-1]), abs=0.005
        )


def test_the_roi_heads_of_a_detector_count_for_all_regions(tool):
    status, said = tool("configs/detection/mask_rcnn_casvit_xs.py", "--shape", 64)
    assert status == 0
    rows = figures(said.out)
    assert list(rows) == [
        "backbone",
        "neck",
        "rpn_head",
        "roi_head.bbox_head",
        "roi_head.mask_head",
        "whole model",
    ]
    fully_connected = 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80)
    assert rows["roi_head.bbox_head"][1] == pytest.approx(1000 * fully_connected / 1e9, abs=0.001)
    masks = 14 * 14 * (4 * 256 * 256 * 9 + 256 * 256 * 4) + 28 * 28 * 256 * 80
    assert rows["roi_head.mask_head"][1] == pytest.approx(100 * masks / 1e9, abs=0.001)
    assert said.out.splitlines()[-1] == "RoI heads: for 1000 proposals and 100 masks, the config's limits"


def test_a_segmentor_is_counted_at_512_with_its_auxiliary_head(tool):
    status, said = tool("configs/segmentation/upernet_care_s2.py")
    assert status == 0
    assert "512×512" in said.out
    rows = figures(said.out)
    assert list(rows) == ["backbone", "decode_head", "auxiliary_head", "whole model"]
    assert rows["backbone"] == (16.401, 10.031)


@pytest.mark.parametrize(("shape", "expected"), [((), "512×512"), ((96,), "96×96"), ((96, 64), "96×64")])
def test_shape(tool, shape, expected):
    status, said = tool("mmcare.CASViT:xs", *(["--shape", *shape] if shape else []))
    assert status == 0
    assert said.out.splitlines()[0] == f"mmcare.CASViT:xs for one image of {expected}"


def test_the_users_options_change_what_is_counted(tool):
    options = ["--cfg-options", "model.backbone.arch=s0", "model.bbox_head.num_classes=20"]
    status, said = tool("configs/detection/retinanet_care_s1.py", "--shape", 64, *options)
    assert status == 0
    rows = figures(said.out)
    assert rows["backbone"][0] == 5.286
    # 9 anchors with 20 class scores and 4 box coordinates each, after four convolutions in each branch
    assert rows["bbox_head"][0] * 1e6 == pytest.approx((8 * 256 + 9 * (20 + 4)) * (256 * 9 + 1), abs=500)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mmcare.CARE:s9"], "CARE has no arch 's9': choose one of s0, s1, s2, or give a dict"),
        (
            ["mmcare.Care:s1"],
            "mmcare.Care:s1 is neither a config nor a backbone",
        ),
        (
            ["care"],
            "care is neither a config nor a backbone: give the file or name of a config, a backbone such as mmcare.",
        ),
        (
            ["nowhere.Net:x"],
            "nowhere.Net:x is neither a config nor a backbone",
        ),
        (["mmdet.ResNet:50"], "mmdet.ResNet:50 is not a backbone that an arch alone describes: give a config"),
        (["configs/nix.py"], "there is no config configs/nix.py: check the path"),
        (["configs/_base_/runtime/detection.py"], "configs/_base_/runtime/detection.py has no model"),
        (["mmcare.CARE:s1", "--cfg-options", "a=1"], "--cfg-options needs a config, and mmcare.CARE:s1 is not one"),
        (
            ["configs/detection/retinanet_care_s1.py", "--cfg-options", "model.type=Nix"],
            "the config's model has type='Nix'",
        ),
        (["configs/detection/retinanet_care_s1.py", "--cfg-options", "a"], "--cfg-options takes pairs like model.back"),
        (["mmcare.CARE:s1", "--shape", "16"], "CARE takes images of shape (B, 3, H, W) with H and W of at least 32"),
        (["mmcare.CARE:s1", "--shape", "1", "2", "3"], "--shape takes one or two sides of an image"),
        (["mmcare.CARE:s1", "--shape", "0"], "--shape takes one or two sides of an image, in pixels, not 0"),
        (["mmcare.CARE:s1", "--shape", "a"], "argument --shape: invalid int value: 'a'"),
        ([], "the following arguments are required: model"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(tool, args, message):
    status, said = tool(*args)
    assert status == 2
    assert said.err.startswith(f"error: {message}")
    assert len(said.err.splitlines()) == 1


def test_a_model_of_another_build_is_not_counted_in_part():
    model = nn.Module()
    model.backbone, model.query_head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)
    with pytest.raises(
        UserError, match=r"^query_head of a Module cannot be counted: give a model with only a backbone, a neck"
    ):
        count(model, 32, 32)
