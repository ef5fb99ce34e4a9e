"""ONNX files in onnxruntime against MMDetection's and MMSegmentation's own predictions."""

import onnx
import pytest
import torch

TOLERANCE = 1e-4


def assert_same_detections(found, samples, size):
    """Assert that a file's outputs are the predictions of MMDetection; boxes of equal score may change places."""
    for number, sample in enumerate(samples):
        wanted = sample.pred_instances
        dets, labels = found.dets[number], found.labels[number]
        count = len(wanted)
        assert (labels >= 0).sum() == count
        assert torch.all(labels[count:] == -1) and not dets[count:].any()
        if "masks" in found.names:
            assert not found.masks[number, count:].any()
        if not count:
            continue
        torch.testing.assert_close(dets[:count, 4], wanted.scores, rtol=TOLERANCE, atol=1e-6)
        distance = (dets[:count, None, :4] - wanted.bboxes).abs().amax(-1)  # (found, wanted)
        distance = torch.where(labels[:count, None] == wanted.labels, distance, torch.inf)
        near = (dets[:count, 4:] - wanted.scores).abs() < 1e-5
        nearest, partner = torch.where(near, distance, torch.inf).min(1)
        assert nearest.max() < TOLERANCE * max(size)
        assert sorted(partner.tolist()) == list(range(count))
        if "masks" in found.names:
            masks = found.masks[number, :count]
            # A pixel on the edge of a mask may be rounded to the other side.
            assert (masks != wanted.masks[partner]).float().mean() < 1e-5
            assert wanted.masks.any()


def assert_same_labels(found, samples):
    for number, sample in enumerate(samples):
        scores, wanted = sample.seg_logits.data.softmax(0).max(0)
        assert (found.output[number] != sample.pred_sem_seg.data[0]).float().mean() < 1e-4
        torch.testing.assert_close(found.scores[number], scores, rtol=TOLERANCE, atol=1e-6)
        assert len(wanted.unique()) > 1


def assert_same(found, samples, size):
    if "dets" in found.names:
        assert_same_detections(found, samples, size)
    else:
        assert_same_labels(found, samples)


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "semantic_fpn", "upernet"])
def test_a_dynamic_file_equals_the_model_at_any_size_and_number_of_images(exported, run, pictures, head):
    model = exported("care", head)
    path = model.export("dynamic.onnx", dynamic=True)
    for batch, height, width in ((1, 64, 64), (2, 160, 224), (3, 97, 130)):
        images = pictures(batch, height, width)
        assert_same(run(path, images), model.predict(images), (height, width))
    sizes = [size.dim_param or size.dim_value for size in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
