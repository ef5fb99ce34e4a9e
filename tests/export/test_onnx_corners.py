"""Settings and pictures at the edge of what a detector's file takes, in onnxruntime against MMDetection."""

import onnx
import pytest
import torch
from test_onnx import assert_same

from mmcare import UserError
from mmcare.export import TARGETS
from mmcare.export.preparation import prepare


@pytest.fixture
def changed(exported, exported_config, tmp_path):
    """Return a function from a head and its ``test_cfg`` to a tiny CARE with the same weights as ever."""

    def changed(head, **settings):
        config = tmp_path / "changed.py"
        config.write_text(f'_base_ = ["{exported("care", head).config}"]\nmodel = dict(test_cfg={settings})\n')
        return exported_config(config)

    return changed


def threshold_between(samples):
    """Return a score between the highest of two images, so that only one has a detection above it."""
    low, high = sorted(sample.pred_instances.scores.max().item() for sample in samples)
    assert high > low + 1e-4
    return (low + high) / 2


@pytest.mark.stack
def test_an_image_without_detections_beside_one_with_some(exported, changed, run, pictures):
    images = pictures(2, 64, 96)
    score = threshold_between(exported("care", "retinanet").predict(images))
    model = changed("retinanet", score_thr=score, min_bbox_size=4, nms_pre=7, max_per_img=300)
    samples = model.predict(images)
    assert sorted(len(sample.pred_instances) > 0 for sample in samples) == [False, True]
    found = run(model.export("none.onnx", shape=(64, 96), batch=2), images)
    assert found.dets.shape == (2, 300, 5)
    assert_same(found, samples, (64, 96))


def test_all_candidates_of_pictures_smaller_than_the_padding(changed, run, pictures):
    images = pictures(2, 45, 33)
    proposals = dict(nms_pre=-1, max_per_img=20, min_bbox_size=8)
    score = threshold_between(changed("mask_rcnn", rpn=proposals).predict(images))
    model = changed("mask_rcnn", rpn=proposals, rcnn=dict(score_thr=score, max_per_img=25, mask_thr_binary=0.3))
    path = model.export("all.onnx", shape=(45, 33), batch=2, opset=21)
    assert onnx.load(path).opset_import[0].version == 21
    samples = model.predict(images)
    assert sorted(len(sample.pred_instances) > 0 for sample in samples) == [False, True]
    assert_same(run(path, images), samples, (45, 33))


def test_boxes_of_equal_scores_and_different_classes_suppress_each_other(changed, run, pictures, tmp_path):
    model = changed("retinanet", score_thr=0.0, nms_pre=50, max_per_img=20, nms=dict(class_agnostic=True))
    for parameter in model.model.bbox_head.retina_cls.parameters():
        parameter.data.zero_()
    # Not with export(), which compares the file with the model, where other boxes may remain.
    prepared = prepare(model.model, "detection", shape=(128, 160))
    path = tmp_path / "equal.onnx"
    path.write_bytes(TARGETS["onnx"].load().convert(prepared, 19))
    found = run(path, pictures(1, 128, 160))
    dets = found.dets[0, found.labels[0] >= 0]
    assert len(dets) > 5 and torch.all(dets[:, 4] == 0.5)
    start, end = torch.maximum(dets[:, None, :2], dets[:, :2]), torch.minimum(dets[:, None, 2:4], dets[:, 2:4])
    shared = (end - start).clamp(min=0).prod(-1)
    areas = (dets[:, 2:4] - dets[:, :2]).prod(-1)
    overlap = shared / (areas[:, None] + areas - shared)
    assert overlap.fill_diagonal_(0).max() <= 0.5 + 1e-4


def test_soft_masks_have_no_export(changed):
    model = changed("mask_rcnn", rcnn=dict(mask_thr_binary=-1))
    message = "test_cfg.rcnn.mask_thr_binary is -1, but an exported file returns binary masks: set it to a probability"
    with pytest.raises(UserError, match=message):
        model.export("soft.onnx", shape=(64, 96))
