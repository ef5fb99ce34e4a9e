"""How alike the outputs of two files are, where there is no metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Outputs = Mapping[str, np.ndarray]

IOU = 0.5
"""From which two boxes of a class are the same object."""


def agreement(wanted: Sequence[Outputs], found: Sequence[Outputs]) -> float:
    """Return how far outputs agree, from 0 to 1, on average over batches.

    Of a detector, it is the share of the scores of detections that have a partner of the same class in the other's, the
    mean of both directions; of a segmentor, the mean IoU of the label maps; of maps, 1 less their relative error.
    """
    return float(np.mean([_agreement(*pair) for pair in zip(wanted, found, strict=True)]))


def relative_errors(wanted: Outputs, found: Outputs) -> list[float]:
    """Return ‖found − wanted‖ / ‖wanted‖ of each output."""
    tiny = np.finfo(np.float32).tiny
    return [
        float(np.linalg.norm(found[name] - value) / max(np.linalg.norm(value), tiny)) for name, value in wanted.items()
    ]


def _agreement(wanted: Outputs, found: Outputs) -> float:
    if "dets" in wanted:
        images = zip(wanted["dets"], wanted["labels"], found["dets"], found["labels"], strict=True)
        return float(np.mean([_same_objects(*image) for image in images]))
    if "output" in wanted:
        first, second = wanted["output"], found["output"]
        ious = [
            np.sum((first == label) & (second == label)) / np.sum((first == label) | (second == label))
            for label in np.unique(first)
        ]
        return float(np.mean(ious))
    return max(0.0, 1 - float(np.mean(relative_errors(wanted, found))))


def _same_objects(dets: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray) -> float:
    """Compare detections (K, 5) and labels (K,) of two files for an image."""
    (dets, labels), (others, other_labels) = (
        (boxes[kinds >= 0], kinds[kinds >= 0]) for boxes, kinds in ((dets, labels), (others, other_labels))
    )
    if not len(dets) or not len(others):
        return float(len(dets) == len(others))
    start = np.maximum(dets[:, None, :2], others[:, :2])
    end = np.minimum(dets[:, None, 2:4], others[:, 2:4])
    shared = (end - start).clip(0).prod(-1)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).prod(-1) for boxes in (dets, others)]
    same = (shared > IOU * (areas[0][:, None] + areas[1] - shared)) & (labels[:, None] == other_labels)
    shares = [np.sum(boxes[:, 4] * same.any(axis)) / boxes[:, 4].sum() for boxes, axis in ((dets, 1), (others, 0))]
    return float(np.mean(shares))
