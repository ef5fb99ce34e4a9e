"""Core ML packages: they are converted, and their programs checked, but nothing here can run them."""

import coremltools as ct
import pytest

from mmcare.runtime import Measured, read_certificate

INT32, FLOAT32 = 131104, 65568
PROGRAM = "Data/com.apple.CoreML/model.mlmodel"


@pytest.mark.parametrize(
    ("family", "head", "outputs"),
    [
        ("care", "semantic_fpn", {"output": ((1, 64, 96), INT32), "scores": ((1, 64, 96), FLOAT32)}),
        (
            "casvit",
            "mask_rcnn",
            {
                "dets": ((1, 12, 5), FLOAT32),
                "labels": ((1, 12), INT32),
                "masks": ((1, 12, 64, 96), INT32),
                "mask_probs": ((1, 12, 28, 28), FLOAT32),
            },
        ),
    ],
)
def test_a_package_has_the_inputs_and_outputs_and_operators_of_core_ml_only(exported, capfd, family, head, outputs):
    model = exported(family, head)
    path = model.export("fixed.mlpackage", target="coreml", shape=(64, 96))
    said = capfd.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "converting the model to coreml",
        "there is no runtime for coreml here, so nothing is measured: the certificate says 'not run on a device'",
    ]
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    assert files == [PROGRAM, "Data/com.apple.CoreML/weights/weight.bin", "Manifest.json"]
    description = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert {each.name: tuple(each.type.multiArrayType.shape) for each in description.input} == {"input": (1, 3, 64, 96)}
    kinds = {each.name: each.type.multiArrayType for each in description.output}
    assert {name: (tuple(kind.shape), kind.dataType) for name, kind in kinds.items()} == outputs
    certificate = read_certificate(path.with_name("fixed.mlpackage.json").read_text(), str(path))
    assert certificate.operators["conv"] > 10 and not any("custom" in name for name in certificate.operators)
    assert sorted(certificate.sha256) == [f"fixed.mlpackage/{name}" for name in files]
    assert certificate.measured == Measured(None, {}, None, None, note="not run on a device")


def test_a_package_is_replaced_as_a_whole(exported):
    model = exported("care", "semantic_fpn")
    path = model.folder / "old.mlpackage"
    path.mkdir()
    (path / "mine").touch()
    model.export("old.mlpackage", target="coreml", part="backbone", shape=(64, 64), overwrite=True)
    assert sorted(file.name for file in path.iterdir()) == ["Data", "Manifest.json"]
