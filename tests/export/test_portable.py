"""Non-maximum suppression and RoI align in plain operations against mmcv's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import nms, roi_align
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

from mmcare.export import portable

pytestmark = pytest.mark.stack
STRIDES = (4, 8, 16, 32)


def greedy(boxes, scores, iou):
    """Return the numbers of the boxes that mmcv keeps of an image, the highest score first."""
    numbers = (scores >= 0).nonzero()[:, 0]
    return numbers[nms(boxes[numbers], scores[numbers], iou)[1]].tolist() if len(numbers) else []


def kept(boxes, scores, most, iou):
    """Return the numbers that portable.keep keeps of each image."""
    best, numbers = portable.keep(boxes, scores, most, iou)
    assert best.shape == numbers.shape == (len(boxes), most)
    assert torch.all(best.diff(dim=1) <= 0)
    found = [row[score >= 0].tolist() for row, score in zip(numbers, best, strict=True)]
    for row, values, score in zip(found, scores, best, strict=True):
        assert torch.equal(values[row], score[score >= 0])
    return found


def crowd(seed, count, spread, grid):
    """Return boxes (2, N, 4) and distinct scores (2, N) of which some are left out."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand((2, count, 2), generator=generator) * spread
    extent = torch.rand((2, count, 2), generator=generator) * 20
    if grid:  # boxes that coincide, touch, have no area, or an IoU of exactly the threshold
        start, extent = (start / 5).round() * 5, (extent / 5).round() * 5
    scores = torch.stack([torch.randperm(count, generator=generator) for _ in range(2)]) / count
    return torch.cat((start, start + extent), dim=-1), torch.where(scores < 0.1, -1.0, scores)


def chain(count):
    """Return boxes (1, N, 4) in a row, each of which overlaps the next with an IoU of 0.6, and falling scores."""
    start = torch.arange(count) * 2.5
    boxes = torch.stack((start, torch.zeros(count), start + 10, torch.full((count,), 10.0)), dim=-1)
    return boxes[None], torch.linspace(1, 0.5, count)[None]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 600),
    spread=st.sampled_from([10, 40, 150]),
    grid=st.booleans(),
    most=st.sampled_from([1, 30, 150]),
    iou=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
)
def test_the_boxes_are_those_of_mmcv(seed, count, spread, grid, most, iou):
    boxes, scores = crowd(seed, count, spread, grid)
    assert kept(boxes, scores, most, iou) == [greedy(*image, iou)[:most] for image in zip(boxes, scores, strict=True)]


def test_a_chain_of_suppressions_is_followed_through_blocks():
    boxes, scores = chain(portable.STEPS)
    assert kept(boxes, scores, 150, 0.5) == [list(range(0, portable.STEPS, 2))]
    # The same chain again and again, elsewhere, so that it lies across the limits of blocks.
    step = portable.STEPS - 1
    boxes = torch.cat([boxes[:, :step] + torch.tensor([0, 20.0, 0, 20]) * row for row in range(40)], dim=1)
    scores = torch.linspace(1, 0.5, 40 * step)[None]
    assert boxes.shape[1] > 2 * portable.BLOCK
    assert kept(boxes, scores, 640, 0.5) == [list(range(0, 40 * step, 2))]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(18, 700), seed=st.integers(0, 10**6), swaps=st.integers(0, 3))
def test_of_a_longer_chain_no_box_remains_that_should_not(count, seed, swaps):
    boxes, scores = chain(count)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(swaps):  # break the order in places
        here, there = torch.randint(count, (2,), generator=generator)
        boxes[:, [here, there]] = boxes[:, [there, here]]
    (found,) = kept(boxes, scores, 350, 0.5)
    wanted = greedy(boxes[0], scores[0], 0.5)
    assert len(found) > 0 and set(found) <= set(wanted)
    assert kept(boxes, scores, portable.FEW, 0.5) == [wanted[: portable.FEW]]


def regions(height, width, seed):
    """Return 200 regions (R, 5) of two images, many of all proportions and some special ones."""
    generator = torch.Generator().manual_seed(seed)
    count = 200
    centre = torch.rand((count, 2), generator=generator) * torch.tensor([width, height])
    half = torch.exp(torch.randn((count, 2), generator=generator) * 1.5 + 3)
    boxes = torch.cat((centre - half, centre + half), dim=1)
    boxes[20:, 0::2], boxes[20:, 1::2] = boxes[20:, 0::2].clamp(0, width), boxes[20:, 1::2].clamp(0, height)
    boxes[-8:] = torch.tensor(
        [
            [0, 0, 0, 0],
            [0, 0, width, height],
            [width, height, width, height],
            [0, 9, width, 9],
            [9, 0, 9.5, height],
            [0, 9, width, 30],
            [5, 0, 5 + 111.9**2 / height, height],  # just of the lowest level, and as thin as such a region can be
            [0, 5, width, 5 + 111.9**2 / width],
        ]
    )
    return torch.cat((torch.randint(2, (count, 1), generator=generator), boxes), dim=1)


@pytest.mark.parametrize(
    ("size", "layer"),
    [
        ((96, 416), dict(output_size=7, sampling_ratio=0)),
        ((480, 352), dict(output_size=14, sampling_ratio=0)),
        ((130, 97), dict(output_size=7, sampling_ratio=0, aligned=False)),
        ((128, 128), dict(output_size=7, sampling_ratio=3)),
    ],
)
def test_features_of_regions_are_those_of_mmcv(size, layer, monkeypatch):
    monkeypatch.setattr(portable, "POOLED", 2**18)  # several times as many regions as are pooled together
    extractor = SingleRoIExtractor(dict(type="RoIAlign", **layer), out_channels=3, featmap_strides=list(STRIDES))
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn((2, 3, *(-(-side // stride) for side in size)), generator=generator) for stride in STRIDES]
    rois = regions(*size, seed=sum(size))
    levels = extractor.map_roi_levels(rois, len(maps))
    assert len(levels.unique()) >= 2
    found = portable.pool(extractor, tuple(maps), rois)
    settings = (layer["sampling_ratio"], "avg", layer.get("aligned", True))
    for level, values in enumerate(maps):
        rows = levels == level
        wanted = roi_align(values, rois[rows], layer["output_size"], 1 / STRIDES[level], *settings)
        torch.testing.assert_close(found[rows], wanted, rtol=0, atol=1e-5)
