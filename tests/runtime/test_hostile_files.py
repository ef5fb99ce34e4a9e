"""Damaged and hostile files, with their certificates, are told in one sentence before a runtime gets them."""

import struct
from hashlib import sha256

import onnx
import pytest
from exported_files import certificate, doubling
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mmcare import runtime
from mmcare.runtime import checks


@pytest.fixture
def no_runtime(monkeypatch):
    """Fail if a runtime gets a file."""

    def open_session(path, threads, precision):
        raise AssertionError(f"a runtime got {path}")

    monkeypatch.setattr("mmcare.runtime.opening.open_session", open_session)


def weights(model):
    return model.graph.initializer[0]


def external(place):
    def change(model):
        weights(model).ClearField("raw_data")
        weights(model).data_location = TensorProto.EXTERNAL
        weights(model).external_data.add(key="location", value=place)

    return change


def with_huge_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40


def with_negative_side(model):
    weights(model).dims[:] = [-1]


def with_empty_weights(model):
    weights(model).dims[:] = [2**20, 2**20]


def with_more_weights_than_data(model):
    weights(model).dims[:] = [2**20]


def with_packed_weights(model):
    weights(model).ClearField("raw_data")
    weights(model).dims[:] = [2**20]
    weights(model).float_data[:] = [1.0]


def with_huge_constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["size"], value_ints=[2**15, 2**15]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["zeros"]))


def with_custom_operator(model):
    model.graph.node.append(helper.make_node("Run", ["c3"], ["x"], domain="com.evil"))


def with_custom_domain(model):
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def with_function(model):
    model.functions.add(name="f")


def with_hidden_weights(model):
    body = helper.make_graph([], "body", [], [])
    body.initializer.add(name="w", data_type=1, data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("If", ["c3"], ["x"], then_branch=body, else_branch=body))


def with_attribute_elsewhere(model):
    value = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=value))


def deep(model):
    graph = helper.make_graph([], "g", [], [])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", ["c3"], ["x"], then_branch=graph)], "g", [], [])
    model.graph.node.extend(graph.node)


ONNX = {
    "outside": (external("/etc/passwd"), "keeps weights (two) in another file, which is not read"),
    "above": (external("../weights.bin"), "keeps weights (two) in another file, which is not read"),
    "beside": (external("weights.bin"), "keeps weights (two) in another file, which is not read"),
    "in a branch": (with_hidden_weights, "keeps weights (w) in another file, which is not read"),
    "in an attribute": (with_attribute_elsewhere, "keeps weights (w) in another file, which is not read"),
    "huge input": (with_huge_input, "has a tensor 'input' of any×3×1099511627776×any values"),
    "negative side": (with_negative_side, "has a tensor 'two' of -1 values"),
    "huge weights": (with_empty_weights, "has a tensor 'two' of 1048576×1048576 values"),
    "weights without data": (with_more_weights_than_data, "has a tensor 'two' of 1048576 values in 4 bytes"),
    "packed weights": (with_packed_weights, "has a tensor 'two' of 1048576 values in 4 bytes"),
    "huge constant": (with_huge_constant, "has a tensor 'ConstantOfShape' of 32768×32768 values"),
    "custom operator": (with_custom_operator, "has operators of 'com.evil', but exports have ONNX's own only"),
    "custom domain": (with_custom_domain, "has operators of 'com.evil', but exports have ONNX's own only"),
    "function": (with_function, "has functions or training steps of its own, which no export makes"),
    "deep": (deep, "has graphs that are nested too deeply"),
}


@pytest.mark.parametrize("case", ONNX)
def test_an_onnx_file_that_no_export_makes_is_refused(write, refused, no_runtime, case):
    change, reason = ONNX[case]
    model = doubling()
    change(model)
    path = write(model)
    assert refused(path) == f"{path} {reason}: copy it again, or export the model again"


def test_a_truncated_onnx_file_is_refused(write, refused, no_runtime):
    path = write()
    whole = path.read_bytes()
    for size in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = refused(path)
        assert message.startswith(f"{path} is no ONNX file or is damaged (")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_are_noticed(write, monkeypatch, data):
    """Only the spaces of a certificate may change; all else is damage, or another hash."""
    monkeypatch.setattr("mmcare.runtime.opening.open_session", lambda path, threads, precision: None)
    path = write()
    wanted = runtime.open_file(path).certificate
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = runtime.open_file(path).certificate
    except runtime.FileError:
        return
    assert found == wanted


def test_a_certificate_that_names_another_input_is_refused(write, refused, no_runtime):
    path = write(doubling((1, 3, 32, 32)), certificate((1, 3, 64, 64)))
    assert refused(path) == (
        f"{path} takes input (1, 3, 32, 32), but its certificate says (1, 3, 64, 64): export the model again"
    )
    path = write(doubling(), certificate(outputs=()))
    assert refused(path) == f"{path} returns c3, c2, but its certificate says : export the model again"


def test_two_certificates_are_refused(write, refused, no_runtime):
    path = write()
    model = onnx.load(path)
    model.metadata_props.append(model.metadata_props[0])
    path.write_bytes(model.SerializeToString())
    assert refused(path) == f"{path} has more than one certificate: export the model again"


# -- OpenVINO ----------------------------------------------------------------------------------------------------------

XML = """<?xml version="1.0"?>
<net name="a" version="11"><layers>
<layer id="0" name="input" type="Parameter" version="opset1"><data shape="1,3,8,8" element_type="f32"/>
<output><port id="0" precision="FP32" names="input"><dim>1</dim><dim>3</dim><dim>8</dim><dim>8</dim></port></output>
</layer>
<layer id="1" name="w" type="Const" version="opset1">
<data element_type="f32" shape="2, 3" offset="0" size="24"/>
</layer>
<layer id="2" name="r" type="ReLU" version="opset1"/>
</layers></net>"""


def openvino(folder, xml=XML, weights=b"\0" * 24):
    """Write an OpenVINO file with a certificate; without weights, if there are none."""
    files = {"a.xml": xml.encode()} if weights is None else {"a.bin": weights, "a.xml": xml.encode()}
    made = runtime.attach_certificate(certificate((1, 3, 8, 8), format="openvino"), files, "a.xml")
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return folder / "a.xml"


def test_what_an_openvino_file_holds_is_read(tmp_path):
    found = checks.check_file(openvino(tmp_path))
    assert (found.inputs, found.operators) == ({"input": (1, 3, 8, 8)}, {"Constant": 1, "Parameter": 1, "Relu": 1})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<net", '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><net', "has a document type, which may hold "),
        ("</net>", "", "is not XML or is damaged (no element found: line "),
        ("net", "html", "is no OpenVINO file, but of <html>"),
        ("opset1", "evil", "has operators of 'evil', but exports have OpenVINO's own only"),
        ('size="24"', 'size="48"', "has weights 'w' of '2, 3' values in 48 bytes"),
        ('offset="0"', 'offset="4"', "has weights 'w' behind the end of its .bin file"),
        ('offset="0"', 'offset="-4"', "has a size '-4' in 'w', which is no number"),
        ("2, 3", "1048576, 1048576", "has a tensor 'w' of 1048576×1048576 values"),
        ("1,3,8,8", "1,3,999999999,8", "has a tensor 'input' of 1×3×999999999×8 values"),
        ("<dim>8</dim>", "<dim>99999999999</dim>", "has a tensor 'of a port' of 1×3×99999999999×99999999999 values"),
    ],
)
def test_an_openvino_file_that_no_export_makes_is_refused(tmp_path, refused, no_runtime, old, new, reason):
    path = openvino(tmp_path, XML.replace(old, new))
    assert refused(path).startswith(f"{path} {reason}")


def test_the_weights_of_an_openvino_file_lie_beside_it(tmp_path, refused, no_runtime):
    path = openvino(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"\1" * 24)
    assert refused(path) == (
        f"{tmp_path}/a.bin is not the file that its certificate was made for, or was changed: copy or export it again"
    )
    (tmp_path / "a.bin").unlink()
    assert refused(path) == f"{path} needs a.bin, which is not beside it: copy it again, or export the model again"
    made = certificate((1, 3, 8, 8), sha256={"../a.bin": "0" * 64, "a.xml": sha256(path.read_bytes()).hexdigest()})
    (tmp_path / "a.bin").write_bytes(b"\0" * 24)
    (tmp_path / "a.xml.json").write_text(made.to_json())
    assert refused(path) == f"the certificate beside {path} is of other files, ../a.bin, a.xml: copy its own"
    (tmp_path / "a.xml.json").unlink()
    assert refused(path) == f"{path} has no certificate, as there is no a.xml.json beside it: put it there"


# -- LiteRT and ExecuTorch ---------------------------------------------------------------------------------------------


def flat(shape=(1, 3, 8, 8), buffer=b"", custom=None):
    """Return a LiteRT file with one tensor, its input and output, and perhaps a custom operator."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)

    def vector(values, put, width):
        builder.StartVector(width, len(values), width)
        for value in reversed(values):
            put(value)
        return builder.EndVector()

    name, code = builder.CreateString("input"), builder.CreateString(custom) if custom else None
    sides = vector(shape, builder.PrependInt32, 4)
    builder.StartObject(8)
    builder.PrependUOffsetTRelativeSlot(0, sides, 0)
    builder.PrependUOffsetTRelativeSlot(3, name, 0)
    builder.PrependUint32Slot(2, 0, 7)  # written although it is 0
    tensor = builder.EndObject()
    tensors = vector([tensor], builder.PrependUOffsetTRelative, 4)
    ends = vector([0], builder.PrependInt32, 4)
    builder.StartObject(5)
    for slot, value in ((0, tensors), (1, ends), (2, ends)):
        builder.PrependUOffsetTRelativeSlot(slot, value, 0)
    graph = builder.EndObject()
    graphs = vector([graph], builder.PrependUOffsetTRelative, 4)
    data = builder.CreateByteVector(buffer)
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(0, data, 0)
    buffers = vector([builder.EndObject()], builder.PrependUOffsetTRelative, 4)
    builder.StartObject(4)
    if code is not None:
        builder.PrependUOffsetTRelativeSlot(1, code, 0)
    codes = vector([builder.EndObject()], builder.PrependUOffsetTRelative, 4)
    builder.StartObject(8)
    for slot, value in ((1, codes), (2, graphs), (4, buffers)):
        builder.PrependUOffsetTRelativeSlot(slot, value, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_what_a_litert_file_holds_is_read(tmp_path):
    (tmp_path / "a.tflite").write_bytes(flat())
    assert checks.check_file(tmp_path / "a.tflite").inputs == {"input": (1, 3, 8, 8)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (flat()[:60], "is damaged, as it has a place outside of itself"),
        (b"PK\3\4" * 10, "is no LiteRT file"),
        (flat(custom="FlexPyFunc"), "has an operator 'FlexPyFunc', but exports have LiteRT's own only"),
        (flat((2**20, 2**20)), "has a tensor 'input' of 1048576×1048576 values"),
        (flat((-1, 3)), "has a tensor 'input' of -1×3 values"),
        (flat((2, 3), b"\0" * 20), "has a tensor 'input' of 2×3 values in 20 bytes"),
    ],
)
def test_a_litert_file_that_no_export_makes_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    with pytest.raises(runtime.FileError) as caught:
        checks.check_file(path)
    assert str(caught.value) == f"{path} {reason}: copy it again, or export the model again"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_litert_file_is_read_to_its_end_at_most(data):
    content = bytearray(flat())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        runtime.check_files({"a.tflite": bytes(content)}, "a.tflite")
    except runtime.FileError as error:
        assert str(error).startswith("a.tflite ")


def test_an_executorch_file_is_as_long_as_it_says():
    header = struct.pack("<I4s4sIQQQ", 48, b"ET12", b"eh00", 32, 64, 64, 100)

    def check(content):
        return runtime.check_files({"a.pte": content}, "a.pte")

    assert check(header.ljust(164, b"\0")).inputs is None
    with pytest.raises(runtime.FileError, match="a.pte is damaged, as it is shorter than its header says: copy it"):
        check(header.ljust(163, b"\0"))
    with pytest.raises(runtime.FileError, match="a.pte is no ExecuTorch file or is damaged: copy it"):
        check(b"PK" * 40)
