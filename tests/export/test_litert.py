"""LiteRT files; test_runtimes_agree.py compares them with the model."""

import pytest

from mmcare.errors import UserError
from mmcare.runtime import open_file


def test_a_conversion_is_silent_folds_the_norms_and_has_no_choices(exported, capfd):
    model = exported("care", "semantic_fpn")
    path = model.export("backbone.tflite", target="litert", part="backbone", shape=(64, 96))
    written = capfd.readouterr()
    assert written.out == "" and "LiteRT" not in written.err and "WARNING" not in written.err
    certificate = open_file(path, threads=1).certificate
    assert certificate.form == "folded-apart"
    assert certificate.operators["CONV_2D"] > 10
    assert not {"SELECT", "SELECT_V2", "ELU"} & certificate.operators.keys()  # each would split XNNPACK's program


def test_a_file_of_all_sizes_is_refused(exported):
    model = exported("care", "semantic_fpn")
    with pytest.raises(UserError) as refusal:
        model.export("dynamic.tflite", target="litert", dynamic=True)
    assert str(refusal.value) == "litert files take images of one size: give --shape and --batch instead of --dynamic"
    assert not (model.folder / "dynamic.tflite").exists()
