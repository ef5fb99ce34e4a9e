"""Certificates: what is written is read, and nothing else is."""

import json
from hashlib import sha256

import numpy as np
import onnx
import onnxruntime
import pytest
from exported_files import certificate, doubling

from mmcare import runtime


def edit(change, hashed=True):
    """Return a certificate's text after a change, with the hash that belongs to it."""
    content = json.loads(certificate().to_json())
    change(content)
    if hashed:
        del content["certificate_sha256"]
        plain = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        content["certificate_sha256"] = sha256(plain).hexdigest()
    return json.dumps(content)


def test_what_is_written_is_read():
    made = certificate()
    assert runtime.read_certificate(made.to_json(), "a.onnx") == made
    # Spaces and the order of keys do not matter.
    assert runtime.read_certificate(edit(lambda content: None, hashed=False), "a.onnx") == made


def test_it_is_the_json_that_the_documentation_describes():
    content = json.loads(certificate().to_json())
    assert content["mmcare_certificate"] == 1
    assert content["input"] == {
        "name": "input",
        "shape": [None, 3, None, None],
        "dtype": "float32",
        "layout": "NCHW",
        "channels": "RGB",
        "range": [0, 255],
    }
    assert set(content["measured"]) == {"metric", "errors", "latency", "probe", "note"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("task"), "it has no task"),
        (lambda content: content["input"].pop("shape"), "it has no input.shape"),
        (lambda content: content.update(colour=1), "it has colour, which is unknown"),
        (lambda content: content["resizing"].update(x=1), "it has resizing.x, which is unknown"),
        (lambda content: content.update(task="tracking"), """task is "tracking", not 'detection' or 'segmentation'"""),
        (lambda content: content["input"].update(shape=[1, 4, 2, 2]), "input.shape[1] is 4, not 3"),
        (lambda content: content["input"].update(shape=[1, 3, 2]), "input.shape is [1, 3, 2], not a list of 4"),
        (lambda content: content["input"].update(shape=[True, 3, 2, 2]), "input.shape[0] is true, not a whole number"),
        (lambda content: content.update(classes="ab"), 'classes is "ab", not a list'),
        (lambda content: content.update(classes=[1]), "classes[0] is 1, not a text"),
        (lambda content: content.update(operators={"Add": 1.5}), "operators.Add is 1.5, not a whole number"),
        (lambda content: content.update(measured=None), "measured is null, not an object"),
    ],
)
def test_a_certificate_of_another_form_is_refused(change, reason):
    with pytest.raises(runtime.FileError) as caught:
        runtime.read_certificate(edit(change), "a.onnx")
    assert str(caught.value) == f"the certificate of a.onnx cannot be used, as {reason}: export the model again"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "it has no mmcare_certificate"),
        ('{"mmcare_certificate": 1, "a": 1, "a": 2}', "a key stands twice"),
        ('{"mmcare_certificate": 1, "a": NaN}', "it has the number NaN, which is not finite"),
        ('{"mmcare_certificate": 1, "a": 1e999}', "it has the number 1e999, which is not finite"),
        ("[" * 100_000, "it is nested too deeply"),
        (" " * 2**24, "it has 16,777,216 characters, more than 8,388,608"),
    ],
)
def test_what_is_not_strict_json_is_refused(text, reason):
    with pytest.raises(runtime.FileError) as caught:
        runtime.read_certificate(text, "a.onnx")
    assert str(caught.value) == f"the certificate of a.onnx cannot be read, as {reason}: export the model again"


@pytest.mark.parametrize("version", [2, True, "1"])
def test_another_version_is_refused(version):
    with pytest.raises(runtime.FileError, match=f"has version {version!r}, but this release reads 1: update mmcare"):
        runtime.read_certificate(edit(lambda content: content.update(mmcare_certificate=version)), "a.onnx")


def test_an_edited_certificate_is_refused():
    with pytest.raises(runtime.FileError, match="the certificate of a.onnx was edited"):
        runtime.read_certificate(edit(lambda content: content.update(form="fast"), hashed=False), "a.onnx")


def test_a_certificate_has_finite_numbers_only():
    with pytest.raises(ValueError, match="not JSON compliant"):
        certificate(thresholds={"score_thr": float("nan")}).to_json()


# -- with a file -------------------------------------------------------------------------------------------------------


def test_a_file_is_opened_and_run(write):
    file = runtime.open_file(write(), threads=1)
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 32, 48)).astype(np.float32)
    found = file.run(images)
    assert list(found) == ["c2", "c3"]  # the certificate's order, not the graph's
    np.testing.assert_array_equal(found["c2"], 2 * images)
    np.testing.assert_array_equal(found["c3"], images.max((2, 3)))
    assert file.takes == (None, None, None)
    assert file.certificate.classes == ("a", "b")


def test_other_tools_read_the_certificate_and_the_file(write):
    path = write()
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    content = json.loads(metadata["mmcare"])
    model = onnx.load(path)
    onnx.checker.check_model(model)
    del model.metadata_props[:]
    assert model == doubling()
    assert content["sha256"] == {"small.onnx": sha256(model.SerializeToString()).hexdigest()}


def test_a_file_is_attached_to_once(write):
    path = write()
    again = runtime.attach_certificate(certificate(form="fast"), {"small.onnx": path.read_bytes()}, "small.onnx")
    path.write_bytes(again["small.onnx"])
    assert runtime.open_file(path).certificate.form == "fast"


def test_a_file_may_be_renamed(write):
    path = write()
    assert runtime.open_file(path.rename(path.with_name("other.onnx"))).certificate.form == "plain"


def test_a_certificate_of_another_file_is_refused(write, refused):
    path = write()
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = np.float32(3).tobytes()
    path.write_bytes(model.SerializeToString())
    assert refused(path) == (
        f"{path} is not the file that its certificate was made for, or was changed: copy or export it again"
    )


def test_a_file_without_a_certificate_is_refused(tmp_path, refused):
    path = tmp_path / "a.onnx"
    path.write_bytes(doubling().SerializeToString())
    assert refused(path) == f"{path} has no certificate: export the model again"


def test_a_sidecar_has_the_hashes_of_all_files():
    files = {"a.bin": b"weights", "a.xml": b"<net/>"}
    made = runtime.attach_certificate(certificate(format="openvino"), files, "a.xml")
    assert list(made) == ["a.bin", "a.xml", "a.xml.json"]
    read = runtime.read_certificate(made["a.xml.json"].decode(), "a.xml")
    assert read.sha256 == {name: sha256(content).hexdigest() for name, content in files.items()}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 32, 32), np.float32), "takes 2 images of 32×any, not 1 image of 32×32: give such images"),
        (np.zeros((2, 3, 64, 32), np.float32), "takes 2 images of 32×any, not 2 images of 64×32: give such images"),
        (np.zeros((2, 32, 32, 3), np.float32), "takes float32 images (B, 3, H, W), not float32 (2, 32, 32, 3): conv"),
        (np.zeros((2, 3, 32, 32), np.uint8), "takes float32 images (B, 3, H, W), not uint8 (2, 3, 32, 32): convert"),
    ],
)
def test_images_that_a_file_cannot_take_are_told(write, images, message):
    shape = (2, 3, 32, None)
    file = runtime.open_file(write(doubling(shape), certificate(shape)))
    with pytest.raises(runtime.FileError) as caught:
        file.run(images)
    assert str(caught.value).startswith(f"{file.path} {message}")


def test_what_cannot_be_opened_is_told(tmp_path, refused, write):
    assert refused("a.pt") == "a.pt is not an exported file that runs here: give one that ends in " + ", ".join(
        runtime.ENDINGS
    )
    assert refused(tmp_path / "a.onnx") == f"there is no file {tmp_path}/a.onnx: give an exported file"
    path = write()
    assert refused(path, precision="bf16") == (
        f"onnxruntime computes {path} in the precision of the file: omit the precision"
    )
