"""The cases of a run: the forms that a subject has, plain first, at sizes that it accepts."""

import pytest

from mmcare import UserError
from mmcare.benchmark import plan, resolve


def test_each_subject_in_its_forms_at_each_size():
    subjects = [resolve(name) for name in ("mmcare.CASViT:xs", "mobilenetv2")]
    forms = ["channels-last", "reparameterized", "plain", "channels-last"]
    cases = plan(subjects, forms, 2, [(32, 32), (64, 32)], "cpu", training=False)
    assert [(case.subject, case.form, case.shape) for case in cases] == [
        *(("mmcare.CASViT:xs", form, (32, 32)) for form in ("plain", "channels-last", "reparameterized")),
        *(("mmcare.CASViT:xs", form, (64, 32)) for form in ("plain", "channels-last", "reparameterized")),
        ("mobilenetv2", "channels-last", (32, 32)),
        ("mobilenetv2", "channels-last", (64, 32)),
    ]
    assert {(case.batch, case.part) for case in cases} == {(2, "backbone")}
    usual = plan(subjects, ["channels-last"], 2, [], "cpu", training=True)
    assert {case.shape for case in usual} == {(512, 512)} and all(case.training for case in usual)


def test_an_image_that_is_too_small_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"^CASViT takes images of shape \(B, 3, H, W\) with H and W of at least 32"):
        plan([resolve("mmcare.CASViT:xs")], ["eager"], 1, [(64, 64), (16, 64)], "cpu", training=False)
