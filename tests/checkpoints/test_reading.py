"""Files of all common formats are read, none of them runs code, and every refusal is one sentence."""

import argparse
import copy
import datetime
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from helpers import Touch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from safetensors.torch import save, save_file

from mmcare import UserError
from mmcare.checkpoints import read_checkpoint

STATE = {"a.weight": torch.arange(100.0), "b": torch.zeros(())}

# -- files that would run code -----------------------------------------------------------------------------------------


def write(content, path, kind):
    """Write a file in torch's format, in its format before 1.6, or as a plain pickle."""
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.stack
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_hostile_checkpoint_is_refused_and_does_nothing(kind, tmp_path, monkeypatch):
    # Even if the environment tells torch to trust all files.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    write({"state_dict": {} if kind == "pickle" else STATE, "meta": Touch(marker)}, file, kind)
    with pytest.raises(UserError, match=r"hostile\.pth asks to load io\.open, which is not a weight") as error:
        read_checkpoint(file)
    assert not marker.exists()
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's advice on trusting the file
    pickle.loads(pickle.dumps(Touch(marker))).close()  # the trap works
    assert marker.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_classes_that_are_no_weights_are_refused_by_name(kind, tmp_path):
    write({"state_dict": STATE, "when": datetime.timedelta(1)}, tmp_path / "odd.pth", kind)
    with pytest.raises(UserError, match=r"odd\.pth asks to load datetime\.timedelta"):
        read_checkpoint(tmp_path / "odd.pth")


def test_what_the_program_allows_does_not_count_and_is_still_allowed_afterwards(tmp_path):
    torch.save({"state_dict": STATE, "when": datetime.timedelta(1)}, tmp_path / "odd.pth")
    with torch.serialization.safe_globals([datetime.timedelta, HistoryBuffer]):
        before = torch.serialization.get_safe_globals()
        with pytest.raises(UserError, match="timedelta"):
            read_checkpoint(tmp_path / "odd.pth")
        assert set(torch.serialization.get_safe_globals()) == set(before)


class Forged:
    """An object created by a call, and with a state, of the attacker's choice."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.stack
def test_training_histories_open_no_way_to_other_attributes(tmp_path):
    """A HistoryBuffer refers to its methods through ``getattr``, which must find no others."""
    meta = Forged(getattr, (HistoryBuffer, "__init__"))
    torch.save({"state_dict": STATE, "meta": meta}, tmp_path / "reach.pth")
    with pytest.raises(UserError, match="getattr"):
        read_checkpoint(tmp_path / "reach.pth")


# -- other objects in training checkpoints -----------------------------------------------------------------------------


@pytest.mark.stack
def test_what_trainers_leave_beside_the_weights_is_read(tmp_path):
    content = {
        "state_dict": STATE,
        "message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0, 2.0], [1, 1])}, "best": np.float64(0.5)},
        "args": argparse.Namespace(lr=np.float32(0.1), sizes=[1, 2]),
        "meta": {"CLASSES": ("cat",), "epoch": np.int64(3), "palette": np.zeros((2, 3), np.uint8)},
    }
    torch.save(content, tmp_path / "trainer.pth")
    read = read_checkpoint(tmp_path / "trainer.pth")
    assert read["meta"]["epoch"] == 3
    assert read["args"].sizes == [1, 2]
    assert read["message_hub"]["log_scalars"]["loss"].current() == 2.0
    assert read["message_hub"]["best"] == 0.5
    assert read["meta"]["palette"].shape == (2, 3)


@pytest.mark.stack
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_numbers_and_arrays_of_numpy_come_back_as_they_were(kind, tmp_path):
    values = [np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1j)]
    values += [np.str_("é"), np.str_(""), np.bytes_(b"a")]
    values += [np.arange(6.0).reshape(2, 3).T, np.array(["a", "bc"]), np.zeros((0, 3)), np.array(3.0)]
    values += [np.arange(3, dtype=">i4")]
    write({"values": values}, tmp_path / "first.pth", kind)
    read = read_checkpoint(tmp_path / "first.pth")["values"]
    # Write and read the values again, as in a resumed training: they are saved as NumPy's own types.
    write({"values": read}, tmp_path / "again.pth", kind)
    assert b"mmcare" not in (tmp_path / "again.pth").read_bytes()
    for again in (read, read_checkpoint(tmp_path / "again.pth")["values"], copy.deepcopy(read)):
        for one, other in zip(again, values, strict=True):
            assert type(one) is type(other) or isinstance(one, np.ndarray)
            assert one.dtype.kind == other.dtype.kind
            np.testing.assert_array_equal(one, other)


def test_numpy_1_and_2_names_are_both_read(tmp_path):
    file = tmp_path / "best.pth"
    write({"state_dict": STATE, "best": np.float64(0.5)}, file, "legacy")
    written = file.read_bytes()
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert new in written or old in written
    for content in (written.replace(new, old), written.replace(old, new)):
        file.write_bytes(content)
        assert read_checkpoint(file)["best"] == 0.5


SCALAR = np.float64(1).__reduce__()[0]


def forged_dtype(*state):
    return Forged(np.dtype, ("S8", False, True), (3, "|", *state))


POINTERS = {
    "objects": Forged(np.dtype, ("O8", False, True)),
    "object scalar": Forged(SCALAR, (np.dtype("O"), b"A" * 8)),
    "fields of objects": Forged(np.dtype, ([("a", "O")],)),
    "size": Forged(SCALAR, (forged_dtype(None, None, None, 10**9, 1, 0), b"A" * 4)),
    "another object's dtype": Forged(SCALAR, (argparse.Namespace(dtype="O8"), b"A" * 8)),
}


@pytest.mark.stack
@pytest.mark.parametrize("kind", POINTERS)
def test_bytes_of_a_file_never_become_pointers(kind, tmp_path):
    torch.save({"state_dict": STATE, "meta": POINTERS[kind]}, tmp_path / "forged.pth")
    with pytest.raises(UserError, match=r"forged\.pth"):
        read_checkpoint(tmp_path / "forged.pth")


@pytest.mark.stack
def test_fields_and_sizes_of_a_pickled_dtype_are_ignored(tmp_path):
    fields = {"a": (np.dtype("S4"), 0)}
    meta = [forged_dtype(None, ("a",), fields, 8, 1, 63), forged_dtype(None, None, None, -5, 1, 63)]
    torch.save({"state_dict": STATE, "meta": meta}, tmp_path / "forged.pth")
    for stand_in in read_checkpoint(tmp_path / "forged.pth")["meta"]:
        assert stand_in.dtype == np.dtype("S8")
        assert stand_in.dtype.fields is None


# -- files that are not checkpoints ------------------------------------------------------------------------------------


def content_of(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


WHOLE = content_of(STATE)
OTHERS = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(5000), "starts with zeros only"),
    "cut in half": (WHOLE[: len(WHOLE) // 2], "is damaged, truncated or not a checkpoint"),
    "cut at its end": (WHOLE[:-100], "is damaged, truncated or not a checkpoint"),
    "cut at its start": (WHOLE[:20], "is damaged, truncated or not a checkpoint"),
    "text": (b"model = dict()\n" * 100, "is a text file"),
    "web page": (b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "noise": (np.random.RandomState(0).bytes(4000), "is damaged, truncated or not a checkpoint"),
    "pickle of today": (pickle.dumps(STATE), "is damaged, truncated or not a checkpoint"),
    "a tensor": (content_of(torch.zeros(1)), "holds a Tensor"),
    "a model": (content_of(torch.nn.Linear(1, 1)), r"asks to load torch\.nn\.modules\.linear\.Linear"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_checkpoints_get_one_sentence(kind, tmp_path):
    content, said = OTHERS[kind]
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.pth {said}") as error:
        read_checkpoint(tmp_path / "weights.pth")
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None  # it would have torch's advice


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):  # the format of torch 0.1
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))


@pytest.mark.parametrize(
    ("write_file", "said"),
    [
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), "is a TorchScript program"),
        (write_tar, "is a tar archive"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_other_archives_are_named(write_file, said, tmp_path):
    write_file(tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth {said}"):
        read_checkpoint(tmp_path / "other.pth")


def test_a_missing_file_a_folder_and_a_dangling_link(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*gone\.pth"):
        read_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    with pytest.raises(UserError, match=r"is a link to .*gone\.pth"):
        read_checkpoint(tmp_path / "link.pth")


def small_files():
    content = {"state_dict": {"a.weight": torch.ones(3), "b": torch.zeros(())}, "best": np.float64(1)}
    files = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        files.append(buffer.getvalue())
    return [*files, save(content["state_dict"], {"epoch": "3"})]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(small_files()), st.data())
def test_damage_anywhere_ends_in_one_sentence(tmp_path, content, data):
    cut = data.draw(st.integers(1, len(content)))
    places = data.draw(st.dictionaries(st.integers(0, cut - 1), st.integers(0, 255), max_size=3))
    content = bytearray(content[:cut])
    for place, value in places.items():
        content[place] = value
    (tmp_path / "damaged.pth").write_bytes(content)
    try:
        assert isinstance(read_checkpoint(tmp_path / "damaged.pth"), dict)
    except UserError as error:
        assert str(error).startswith(str(tmp_path))
        assert str(error).isprintable()


# -- safetensors -------------------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_safetensors_are_read_with_their_metadata(tmp_path):
    meta = {"classes": ["cat"], "epoch": 3, "cfg": "model = dict()\n"}
    texts = {key: json.dumps(value) for key, value in meta.items()}
    texts |= {"format": "pt", "deep": "[" * 100_000}  # a text of another tool, and one that exhausts the parser
    save_file(STATE, tmp_path / "weights.safetensors", texts)
    for map_location in ("cpu", torch.device("cpu"), None, lambda storage, location: storage):
        read = read_checkpoint(tmp_path / "weights.safetensors", map_location)
        assert read["meta"] == {**meta, "format": "pt", "deep": texts["deep"]}
        assert all(torch.equal(read["state_dict"][name], value) for name, value in STATE.items())


def header(text, size=None):
    return (size or len(text)).to_bytes(8, "little") + text


HOSTILE = {
    "cut": save(STATE)[:-5],
    "cut header": save(STATE)[:99],
    "header longer than the file": header(b'{"a":{}}', 10**7),
    "no JSON": header(b"{nonsense}"),
    "deep": header(b'{"a":' * 10_000),
    "no UTF-8": header(b'{"\xff\xfe":1}'),
    "odd metadata": header(b'{"__metadata__":{"a":[1]}}'),
    "beyond the end": header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    "another type": header(b'{"a":{"dtype":"OBJ","shape":[1],"data_offsets":[0,8]}}') + bytes(8),
    "overflow": header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_damaged_and_hostile_safetensors_get_one_sentence(kind, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(HOSTILE[kind])
    with pytest.raises(UserError, match=r"bad\.safetensors is a damaged safetensors file") as error:
        read_checkpoint(tmp_path / "bad.safetensors")
    assert str(error.value).isprintable()
