"""The probe: a picture that is the same everywhere, and errors that mean something."""

import json
from hashlib import sha256

import numpy as np
import pytest

from mmcare.runtime import compare_probe, draw_probe, record_probe

SHAPE = (2, 3, 64, 96)


def detections(*rows, count=4, masks=None):
    """Return the outputs of a detector for two pictures, both with the rows (x1, y1, x2, y2, score, label)."""
    dets, labels = np.zeros((2, count, 5), np.float32), np.full((2, count), -1, np.int64)
    for number, (*box, label) in enumerate(rows):
        dets[:, number], labels[:, number] = box, label
    outputs = {"dets": dets, "labels": labels}
    if masks is not None:
        outputs["masks"] = np.zeros((2, count, 64, 96), bool)
        outputs["masks"][:, : len(masks)] = masks
    return outputs


def errors(old, new, floor=0.05):
    content = json.loads(json.dumps(record_probe(lambda images: old, SHAPE, floor, seeds=(0,))))
    return compare_probe(content, new)


A, B = (10, 10, 30, 40, 0.9, 1), (40, 20, 60, 50, 0.5, 0)


def test_the_picture_is_the_same_on_all_machines():
    picture = draw_probe(3, (2, 3, 48, 64))
    assert picture.dtype == np.float32 and picture.shape == (2, 3, 48, 64)
    assert sha256(picture.astype(np.uint8).tobytes()).hexdigest() == (
        "b41ececcf86ac804529e000408a7f2ab1bd0db80b639c3293cc680979c8505c2"
    )
    assert not np.array_equal(picture[0], picture[1])


def test_the_seed_is_taken_in_which_most_is_found():
    pictures = [draw_probe(seed, SHAPE)[0, 0, 0, 0] for seed in range(4)]

    def run(images):
        return detections(A, B) if images[0, 0, 0, 0] == pictures[2] else detections(A)

    assert record_probe(run, SHAPE, 0.05)["seed"] == 2


def test_equal_outputs_have_no_error():
    masks = np.zeros((2, 64, 96), bool)
    masks[:, 10:40, 10:30] = True
    assert errors(detections(A, B, masks=masks), detections(A, B, masks=masks)) == {"dets": 0, "masks": 0}
    maps = {"c2": np.random.default_rng(0).standard_normal((2, 8, 16, 24), np.float32)}
    assert errors(maps, maps)["c2"] < 1e-7
    labels = {"output": np.arange(2 * 64 * 96).reshape(2, 64, 96)}
    assert errors(labels, labels) == {"output": 0}


@pytest.mark.parametrize(
    ("new", "error"),
    [
        ([B, A], 0),  # the order does not matter
        ([(10, 10, 30, 42.4, 0.9, 1), B], 2.4 / 96),
        ([(10, 10, 30, 40, 0.88, 1), B], 0.02),
        ([A], 0.5 - 0.05),  # a lost one
        ([A, B, (0, 0, 9, 9, 0.25, 1)], 0.25 - 0.05),  # one too many
        ([A, (*B[:5], 1)], 0.5 - 0.05),  # another label
        ([A, B, (0, 0, 9, 9, 0.05, 1)], 0),  # one that is as weak as can be
        ([(70, 50, 90, 60, 0.9, 1), B], 0.9 - 0.05),  # elsewhere
        ([], 0.9 - 0.05),
    ],
)
def test_the_error_of_detections(new, error):
    assert errors(detections(A, B), detections(*new))["dets"] == pytest.approx(error, abs=1e-6)


def test_of_a_full_list_the_last_ones_may_change():
    assert errors(detections(A, B, count=2), detections(A, (0, 0, 9, 9, 0.501, 1), count=2))["dets"] < 0.0011


def test_the_error_of_masks_is_the_share_of_pixels():
    old = np.zeros((1, 64, 96), bool)
    old[:, 8:16, 12:24] = True  # a cell of the grid
    new = old.copy()
    new[:, 15, 12:24] = False
    assert errors(detections(A, masks=old), detections(A, masks=new)) == {"dets": 0, "masks": 12 / 96}


def test_the_error_of_masks_probabilities_is_that_of_their_means():
    old, new = ({"mask_probs": np.full((2, 4, 28, 28), value, np.float32)} for value in (0.25, 0.5))
    old, new = detections(A, B) | old, detections(B, A) | new
    assert errors(old, new) == {"dets": 0, "mask_probs": 0.25}


def test_the_error_of_maps_is_relative_and_of_labels_a_share():
    old = {"logits": np.linspace(-4, 4, 256, dtype=np.float32).reshape(1, 1, 16, 16)}
    assert errors(old, {"logits": old["logits"] + np.float32(0.4)})["logits"] == pytest.approx(0.1)
    old = {"output": np.zeros((1, 32, 32), np.int64)}
    new = {"output": old["output"].copy()}
    new["output"][0, :8] = 1
    assert errors(old, new) == {"output": 0.25}


def test_outputs_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="no output c2 of the size"):
        errors({"c2": np.zeros((1, 2))}, {"c3": np.zeros((1, 2))})
    with pytest.raises(ValueError, match="no detections in as many pictures"):
        errors(detections(A), {"c3": np.zeros((1, 2))})
    with pytest.raises(ValueError, match="it has no measured.probe.shape"):
        compare_probe({"seed": 1}, {})
