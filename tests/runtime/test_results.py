"""Results in the pictures' own pixels: boxes, masks and label maps of files that resize and pad."""

import cv2
import numpy as np
import pytest
import torch
from exported_files import certificate
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from onnx import TensorProto, helper, numpy_helper

from mmcare import runtime
from mmcare.runtime.resizing import draw_mask, resize_labels

H, W = 48, 64


def returning(**outputs):
    """Return an ONNX model of images of 64×48 that returns the same whatever it gets."""
    nodes, values, constants = [], [], []
    for name, value in outputs.items():
        kind = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}[value.dtype.kind]
        constants.append(numpy_helper.from_array(value, f"{name}_value"))
        nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
        values.append(helper.make_tensor_value_info(name, kind, value.shape))
    images = helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, H, W))
    graph = helper.make_graph(nodes, "returning", [images], values, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def model(write):
    """Return a function that makes a model that returns the same for all pictures."""

    def model(task, outputs, scale=None, **options):
        made = certificate(
            (1, 3, H, W),
            part="model",
            task=task,
            resizing=runtime.Resizing(scale, True, None),
            outputs=tuple(runtime.Output(name, value.shape, str(value.dtype)) for name, value in outputs.items()),
        )
        return runtime.Model(write(returning(**outputs), made), **options)

    return model


@pytest.fixture
def detector(model):
    """Return a function that makes a detector with two boxes, one of which ends outside of 32×48, and a third place."""
    boxes = [[8, 6, 24, 30, 0.9], [20, 10, 50, 40, 0.5], [0, 0, 0, 0, 0]]
    masks = np.ones((1, 3, 64, 64), np.float32)
    outputs = {"dets": np.float32([boxes]), "labels": np.int64([[1, 0, -1]]), "mask_probs": masks}
    return lambda *args, **options: model("detection", outputs, *args, **options)


def test_detections_of_a_picture_of_the_files_size(detector):
    found = detector()(np.zeros((H, W, 3), np.uint8))
    np.testing.assert_array_equal(found.boxes, np.float32([[8, 6, 24, 30], [20, 10, 50, 40]]))
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.5]))
    assert (found.labels.tolist(), found.names, found.size) == ([1, 0], ["b", "a"], (H, W))
    assert found.masks.shape == (2, H, W) and found.masks[0, 6:30, 8:24].all() and found.masks[0].sum() == 24 * 16
    assert repr(found) == "<Result of 64×48: 1 b, 1 a>"


def test_detections_of_a_picture_that_is_resized_and_padded(detector):
    found = detector(scale=(48, 32))(np.zeros((72, 48, 3), np.uint8))  # resized to 32×48
    scale = np.float32(1.5)
    np.testing.assert_allclose(found.boxes, np.float32([[8, 6, 24, 30], [20, 10, 32, 40]]) * scale, rtol=1e-6)
    assert found.masks[0, 9:45, 12:36].all() and found.masks[0].sum() == 36 * 24
    assert found.masks[1, 15:60, 30:48].all() and found.masks[1].sum() == 45 * 18


def test_what_is_found_in_the_padding_is_left_out(detector):
    found = detector()(np.zeros((H, 20, 3), np.uint8))
    np.testing.assert_array_equal(found.boxes, np.float32([[8, 6, 20, 30]]))
    assert found.masks.shape == (1, H, 20)


def test_a_label_map_has_the_pictures_size(model):
    output = np.zeros((1, H, W), np.int64)
    output[:, :, 16:] = 1
    outputs = {"output": output, "scores": np.full((1, H, W), 0.9, np.float32)}
    found = model("segmentation", outputs)(np.zeros((H, 40, 3), np.uint8))
    np.testing.assert_array_equal(found.label_map, output[0, :, :40])
    assert (found.label_map.dtype, len(found.boxes)) == (np.uint8, 0)
    found = model("segmentation", outputs, scale=(48, 32))(np.zeros((96, 64, 3), np.uint8))
    np.testing.assert_array_equal(found.label_map, np.repeat(np.arange(64) >= 32, 96).reshape(64, 96).T)
    assert repr(found) == "<Result of 64×96: a, b>"


def test_a_result_is_json(detector, model):
    masks = detector()(np.zeros((H, W, 3), np.uint8)).to_json()
    assert (masks["width"], masks["height"]) == (64, 48)
    first = masks["detections"][0]
    assert {key: first[key] for key in ("label", "name", "score", "box")} == {
        "label": 1,
        "name": "b",
        "score": 0.9,
        "box": [8, 6, 24, 30],
    }
    assert first["mask"]["counts"] == [8 * 48 + 6, *[24, 24] * 15, 24, 48 * 64 - 23 * 48 - 30]
    output = np.zeros((1, H, W), np.int64)
    output[0, 0, 0] = 1
    outputs = {"output": output, "scores": np.ones((1, H, W), np.float32)}
    regions = model("segmentation", outputs)(np.zeros((H, W, 3), np.uint8)).to_json()["regions"]
    assert regions == [
        {"label": 0, "name": "a", "mask": {"size": [48, 64], "counts": [1, 48 * 64 - 1]}},
        {"label": 1, "name": "b", "mask": {"size": [48, 64], "counts": [0, 1, 48 * 64 - 1]}},
    ]


@pytest.mark.parametrize("least", [0.3, 0.5])
def test_masks_are_drawn_as_mmdetection_draws_them(least):
    random = torch.Generator().manual_seed(0)
    start = torch.rand((20, 2), generator=random) * 70 - 20
    boxes = torch.cat((start, start + 25 + torch.rand((20, 2), generator=random) * 60), dim=1)
    logits = torch.randn((20, 1, 28, 28), generator=random)
    instances = InstanceData(bboxes=boxes.clone(), labels=torch.zeros(20, dtype=torch.int64))
    meta = {"ori_shape": (70, 90), "scale_factor": (1.0, 1.0)}
    settings = ConfigDict(mask_thr_binary=least)
    (wanted,) = FCNMaskHead(num_classes=1).predict_by_feat((logits,), [instances], [meta], settings, rescale=True)
    found = np.zeros((20, 70, 90), bool)
    for mask, box, target in zip(logits.sigmoid()[:, 0].numpy(), boxes.numpy(), found, strict=True):
        draw_mask(mask, box, target, least)
    assert found.any((1, 2)).all()
    assert (found != wanted.masks.numpy()).mean() < 1e-5


def test_a_box_without_size_or_outside_of_the_picture_has_no_mask():
    target = np.zeros((20, 30), bool)
    for box in ([10, 10, 10, 10], [40, 5, 60, 15], [-30, -30, -10, -10]):
        draw_mask(np.ones((28, 28), np.float32), np.float32(box), target, 0.5)
    assert not target.any()


def test_label_maps_are_interpolated_nearly_as_logits():
    logits = cv2.resize(np.random.default_rng(0).standard_normal((6, 8, 4)).astype(np.float32) * 4, (128, 96))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = cv2.resize(logits, (200, 150)).argmax(-1)
    found = resize_labels(logits.argmax(-1), probabilities.max(-1), (150, 200))
    nearest = cv2.resize(logits.argmax(-1).astype(np.uint8), (200, 150), interpolation=cv2.INTER_NEAREST_EXACT)
    assert (found != wanted).mean() < 0.012
    assert (found != wanted).mean() < 0.6 * (nearest != wanted).mean()
