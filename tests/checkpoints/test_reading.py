"""Weights come in from every format that is around, from no file that would run code, and only where they fit."""

import argparse
import copy
import datetime
import io
import json
import logging
import pickle
import subprocess
import sys
import tarfile
import threading
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import helpers as reference
import torch
from helpers import Touch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from safetensors.torch import save, save_file

from mmcare import CARE, UserError
from mmcare.checkpoints.reading import guard_checkpoint_loading, read_checkpoint, select_weights

CARE_STATE = reference.backbone_weights("CARE", "s0")
CASVIT_STATE = reference.backbone_weights("CASViT", "xs")


def load(family, arch, file, **init):
    model = MODELS.build(
        dict(type=f"mmcare.{family}", arch=arch, init_cfg=dict(type="Pretrained", checkpoint=str(file), **init))
    )
    model.init_weights()
    return model.eval()


def averaged(state):
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {
        "state_dict": state,
        "optimizer": {"state": {0: {"step": 1}}},
        "args": argparse.Namespace(lr=0.1),
    },
    "state_dict_ema": lambda state: {"state_dict_ema": state},
    "model_ema": lambda state: {"model_ema": state},
    "data parallel": lambda state: {"state_dict": prefixed(state, "module.")},
    "detector": lambda state: {
        "state_dict": {**prefixed(state, "backbone."), "bbox_head.retina_cls.weight": torch.zeros(2)}
    },
    "parallel detector": lambda state: {"state_dict": prefixed(state, "module.backbone.")},
    "classifier": lambda state: {**state, "head.fc.weight": torch.zeros(3), "dist_head.fc.weight": torch.zeros(3)},
}


@pytest.mark.stack
@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize(("family", "arch", "state"), [("CARE", "s0", CARE_STATE), ("CASViT", "xs", CASVIT_STATE)])
def test_every_format_gives_the_authors_outputs(family, arch, state, wrapping, tmp_path):
    file = tmp_path / "weights.pth.tar"
    torch.save(WRAPPED[wrapping](state), file)
    with torch.no_grad():
        outputs = load(family, arch, file)(reference.image())
    for output, wanted in zip(outputs, reference.expected(family, arch), strict=True):
        assert (output - wanted).norm() / wanted.norm() < 1e-5


def test_own_checkpoint_round_trip(tmp_path):
    model = CARE("s0")
    torch.save({"state_dict": prefixed(model.state_dict(), "backbone."), "meta": {}}, tmp_path / "own.pth")
    loaded = load("CARE", "s0", tmp_path / "own.pth")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("file", "default"),
    [
        (lambda raw, ema: {"model": raw, "model_ema": ema}, "raw"),
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "raw"),
        # MMEngine's EMAHook puts the averaged weights in the main entry
        (lambda raw, ema: {"state_dict": ema, "ema_state_dict": prefixed(raw, "module.")}, "ema"),
    ],
)
def test_raw_and_averaged_weights_can_be_chosen(file, default, tmp_path, log):
    torch.save(file(CARE_STATE, averaged(CARE_STATE)), tmp_path / "both.pth")
    bias = {"raw": CARE_STATE["stem.0.bias"], "ema": CARE_STATE["stem.0.bias"] + 1}
    for asked in (None, "raw", "ema"):
        model = load("CARE", "s0", tmp_path / "both.pth", **({} if asked is None else {"weights": asked}))
        taken = asked or default
        torch.testing.assert_close(model.stem.conv.bias.data, bias[taken])
        said = "\n".join(log)
        log.clear()
        assert ("averaged (EMA) weights under" if taken == "ema" else "raw weights under") in said
        assert 'weights="ema"' in said


def test_asking_for_weights_that_are_not_there(tmp_path):
    torch.save(CARE_STATE, tmp_path / "raw.pth")
    with pytest.raises(UserError, match=r"raw\.pth.*no averaged"):
        load("CARE", "s0", tmp_path / "raw.pth", weights="ema")
    with pytest.raises(UserError, match="weights='best'"):
        load("CARE", "s0", tmp_path / "raw.pth", weights="best")


def test_what_was_not_found_and_not_used_is_logged(tmp_path, log):
    state = reference.weights("CASViT", "xs", "classifier")
    torch.save({"model": state}, tmp_path / "imagenet.pth")
    model = load("CASViT", "xs", tmp_path / "imagenet.pth")
    assert (model.out_norms["0"].weight == 1).all()
    said = "\n".join(log)
    assert "left at their start: out_norms.0.weight" in said
    assert "not used: norm.weight" in said
    assert "stem" not in said


@pytest.mark.parametrize(
    ("arch", "state", "said"),
    [
        ("s2", CARE_STATE, "does not fit CARE s2.*other shapes.*its backbone is CARE s0"),
        ("s0", CASVIT_STATE, "does not fit CARE s0.*not one of its weights.*its backbone is CASViT xs"),
        ("s0", {"neck.conv.weight": torch.zeros(1)}, "not one of its weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(arch, state, said, tmp_path):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=said) as error:
        load("CARE", arch, tmp_path / "other.pth")
    assert "other.pth" in str(error.value)
    assert "\n" not in str(error.value)


def hostile(path, marker, kind):
    """A checkpoint that creates ``marker`` when it is unpickled."""
    content = {"state_dict": CARE_STATE, "meta": Touch(marker)}
    if kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.stack
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_hostile_checkpoint_is_refused_and_does_nothing(kind, tmp_path, monkeypatch):
    # even where somebody has told torch to trust all files
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    hostile(file, marker, kind)
    with pytest.raises(UserError, match=r"hostile\.pth") as error:
        load("CARE", "s0", file)
    assert not marker.exists()
    assert "\n" not in str(error.value)
    pickle.loads(pickle.dumps(Touch(marker))).close()  # the trap works
    assert marker.exists()


@pytest.mark.stack
def test_guarded_process_refuses_hostile_files_whoever_loads_them(tmp_path):
    file, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    hostile(file, marker, "zip")
    code = f"""
import torch
from mmcare.checkpoints.reading import guard_checkpoint_loading
guard_checkpoint_loading()
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
for attempt in (
    lambda: CheckpointLoader.load_checkpoint({str(file)!r}),
    lambda: load_checkpoint(torch.nn.Linear(1, 1), {str(file)!r}),
    lambda: torch.load({str(file)!r}, weights_only=False),
):
    try:
        attempt()
    except Exception as error:
        print("refused", type(error).__name__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.count("refused") == 3, result.stderr
    assert not marker.exists()


@pytest.mark.stack
def test_what_trainers_leave_beside_the_weights_is_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        "state_dict": CARE_STATE,
        "message_hub": {"log_scalars": {"loss": history}, "runtime_info": {"best": np.float64(0.5)}},
        "args": argparse.Namespace(lr=np.float32(0.1), sizes=[1, 2]),
        "meta": {"CLASSES": ("cat",), "epoch": np.int64(3), "when": "now", "palette": np.zeros((2, 3), np.uint8)},
        "done": np.bool_(True),
    }
    torch.save(content, tmp_path / "trainer.pth")
    read = read_checkpoint(tmp_path / "trainer.pth")
    assert read["meta"]["epoch"] == 3
    assert read["args"].sizes == [1, 2]
    assert read["message_hub"]["log_scalars"]["loss"].current() == 2.0
    assert read["meta"]["palette"].shape == (2, 3)
    assert bool(read["done"]) is True


@pytest.mark.stack
def test_training_histories_open_no_way_to_other_attributes(tmp_path):
    """A HistoryBuffer names its methods through ``getattr``, which must find these and no others."""

    class Reach:
        def __reduce__(self):
            return (getattr, (HistoryBuffer, "__init__"))

    torch.save({"state_dict": CARE_STATE, "meta": Reach()}, tmp_path / "reach.pth")
    with pytest.raises(UserError, match="getattr"):
        read_checkpoint(tmp_path / "reach.pth")


def test_numpy_1_and_2_names_are_both_read(tmp_path):
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.save({"state_dict": CARE_STATE, "best": np.float64(0.5)}, new)
    torch.save({"state_dict": CARE_STATE, "best": np.float64(0.5)}, old, _use_new_zipfile_serialization=False)
    swapped = old.read_bytes()
    assert b"numpy._core.multiarray" in swapped or b"numpy.core.multiarray" in swapped
    old.write_bytes(swapped.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    for file in (old, new):
        assert read_checkpoint(file)["best"] == 0.5


def test_other_classes_are_refused_by_name(tmp_path):
    torch.save({"state_dict": CARE_STATE, "when": datetime.timedelta(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="datetime.timedelta"):
        read_checkpoint(tmp_path / "odd.pth")


def whole_file(path):
    torch.save(CARE_STATE, path)
    return path.read_bytes()


DAMAGED = {
    "missing": (None, "there is no checkpoint"),
    "empty": (lambda path: b"", "is empty"),
    "cut in half": (lambda path: whole_file(path)[: len(whole_file(path)) // 2], "damaged or cut short"),
    "cut at its end": (lambda path: whole_file(path)[:-100], "damaged or cut short"),
    "cut at its start": (lambda path: whole_file(path)[:20], "damaged|not a checkpoint"),
    "text": (lambda path: b"model = dict()\n" * 100, "is a text file"),
    "web page": (lambda path: b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
    "lfs": (lambda path: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "noise": (lambda path: np.random.RandomState(0).bytes(4000), "not a checkpoint|damaged"),
    "pickled list": (lambda path: pickle.dumps([1, 2]), "not a checkpoint|damaged"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_files_that_are_no_checkpoints_get_one_sentence(damage, tmp_path):
    content, said = DAMAGED[damage]
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content(file))
    with pytest.raises(UserError, match=said) as error:
        read_checkpoint(file)
    assert "weights.pth" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__cause__ is None


def test_a_folder_a_dangling_link_and_no_weights(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    with pytest.raises(UserError, match="is a link to .*gone.pth"):
        read_checkpoint(tmp_path / "link.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no named weights"):
        select_weights(read_checkpoint(tmp_path / "empty.pth"))


def test_code_in_the_metadata_of_old_checkpoints_is_dropped(tmp_path):
    """MMEngine's resume executes the text under meta.config."""
    torch.save({"state_dict": CARE_STATE, "meta": {"config": "open('x', 'w')", "epoch": 1}}, tmp_path / "old.pth")
    from mmengine.runner.checkpoint import CheckpointLoader

    before = dict(CheckpointLoader._schemes)
    try:
        guard_checkpoint_loading()
        assert CheckpointLoader.load_checkpoint(str(tmp_path / "old.pth"))["meta"] == {"epoch": 1}
    finally:
        CheckpointLoader._schemes = before


# -- NumPy's part of a file --------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_and_arrays_of_numpy_come_back_as_they_were(zipped, tmp_path):
    values = [
        np.float32(1.5),
        np.int64(-3),
        np.bool_(True),
        np.complex64(1j),
        np.str_("é"),
        np.str_(""),
        np.bytes_(b"a"),
    ]
    values += [np.arange(6.0).reshape(2, 3).T, np.array(["a", "bc"]), np.zeros((0, 3)), np.array(3.0)]
    values += [np.arange(3, dtype=">i4")]
    torch.save({"values": values}, tmp_path / "first.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "first.pth")["values"]
    # what was read is written and read again, as in a training that was resumed, and named as NumPy's own
    torch.save({"values": read}, tmp_path / "again.pth", _use_new_zipfile_serialization=zipped)
    assert b"mmcare" not in (tmp_path / "again.pth").read_bytes()
    for again in (read, read_checkpoint(tmp_path / "again.pth")["values"], copy.deepcopy(read)):
        for one, other in zip(again, values, strict=True):
            assert type(one) is type(other) or isinstance(one, np.ndarray)
            assert one.dtype.kind == other.dtype.kind
            np.testing.assert_array_equal(one, other)


class Forged:
    """A NumPy object with a state of the attacker's choice."""

    def __init__(self, function, args, state=None):
        self.reduced = (function, args, state) if state is not None else (function, args)

    def __reduce__(self):
        return self.reduced


def forged_dtype(*state):
    return Forged(np.dtype, ("S8", False, True), (3, "|", *state))


POINTERS = {
    "objects": Forged(np.dtype, ("O8", False, True)),
    "object scalar": Forged(type(np.float64(1)).__reduce__(np.float64(1))[0], (np.dtype("O"), b"A" * 8)),
    "fields of objects": Forged(np.dtype, ([("a", "O")],)),
    "size": Forged(np.float64(1).__reduce__()[0], (forged_dtype(None, None, None, 10**9, 1, 0), b"A" * 4)),
}


@pytest.mark.stack
@pytest.mark.parametrize("kind", POINTERS)
def test_bytes_of_a_file_never_become_pointers(kind, tmp_path):
    torch.save({"state_dict": CARE_STATE, "meta": POINTERS[kind]}, tmp_path / "forged.pth")
    with pytest.raises(UserError, match=r"forged\.pth"):
        read_checkpoint(tmp_path / "forged.pth")


@pytest.mark.stack
def test_fields_and_sizes_of_a_pickled_dtype_are_ignored(tmp_path):
    fields = {"a": (np.dtype("S4"), 0)}
    meta = [forged_dtype(None, ("a",), fields, 8, 1, 63), forged_dtype(None, None, None, -5, 1, 63)]
    torch.save({"state_dict": CARE_STATE, "meta": meta}, tmp_path / "forged.pth")
    for stand_in in read_checkpoint(tmp_path / "forged.pth")["meta"]:
        assert stand_in.dtype == np.dtype("S8")
        assert stand_in.dtype.fields is None


# -- other formats -----------------------------------------------------------------------------------------------------


def tar(path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), "is a TorchScript program"),
        (tar, "is a tar archive"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "asks to load torch.nn.modules.linear.Linear"),
        (lambda path: torch.save(torch.zeros(1), path), "holds a Tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit).*")
def test_other_things_that_torch_writes_are_named(write, said, tmp_path):
    write(tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth {said}") as error:
        read_checkpoint(tmp_path / "other.pth")
    assert "weights_only" not in str(error.value)  # torch's advice how to trust the file after all


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


@pytest.mark.stack
def test_safetensors_are_read_with_their_metadata(tmp_path):
    meta = {"classes": ["cat"], "epoch": 3, "cfg": "model = dict()\n"}
    texts = {key: json.dumps(value) for key, value in meta.items()}
    texts |= {"format": "pt", "deep": "[" * 100_000}  # other people's, and some that would exhaust the parser
    save_file(CARE_STATE, tmp_path / "weights.safetensors", texts)
    for map_location in ("cpu", torch.device("cpu"), None, lambda storage, location: storage):
        read = read_checkpoint(tmp_path / "weights.safetensors", map_location)
        assert read["meta"] == {**meta, "format": "pt", "deep": texts["deep"]}
        assert all(torch.equal(read["state_dict"][name], value) for name, value in CARE_STATE.items())
    assert load("CARE", "s0", tmp_path / "weights.safetensors").stem.conv.bias[0] == CARE_STATE["stem.0.bias"][0]


def header(text, size=None):
    return (size or len(text)).to_bytes(8, "little") + text


HOSTILE = {
    "cut": lambda: save(CARE_STATE)[:-5],
    "cut header": lambda: save(CARE_STATE)[:99],
    "header longer than the file": lambda: header(b'{"a":{}}', 10**7),
    "no JSON": lambda: header(b"{nonsense}"),
    "deep": lambda: header(b'{"a":' * 10_000),
    "no UTF-8": lambda: header(b'{"\xff\xfe":1}'),
    "odd metadata": lambda: header(b'{"__metadata__":{"a":[1]}}'),
    "beyond the end": lambda: header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    "another type": lambda: header(b'{"a":{"dtype":"OBJ","shape":[1],"data_offsets":[0,8]}}') + bytes(8),
    "overflow": lambda: header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_damaged_and_hostile_safetensors_get_one_sentence(kind, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(HOSTILE[kind]())
    with pytest.raises(UserError, match=r"bad\.safetensors is a damaged safetensors file") as error:
        read_checkpoint(tmp_path / "bad.safetensors")
    assert str(error.value).isprintable()


# -- weights that are none ---------------------------------------------------------------------------------------------


def test_what_is_no_named_tensor_is_passed_over(tmp_path):
    torch.save({"state_dict": {**CARE_STATE, 3: torch.zeros(1), "version": 2, "nested": {}}}, tmp_path / "odd.pth")
    state, _ = select_weights(read_checkpoint(tmp_path / "odd.pth"))
    assert set(state) == set(CARE_STATE)
    torch.save({0: torch.zeros(2)}, tmp_path / "numbered.pth")
    with pytest.raises(UserError, match="numbered.pth: the checkpoint holds no named weights"):
        load("CARE", "s0", tmp_path / "numbered.pth")


@pytest.mark.parametrize(
    "change", [torch.Tensor.to_sparse, lambda value: value.to(torch.int8), lambda value: value.to("meta")]
)
def test_weights_that_are_no_plain_numbers_are_refused(change, tmp_path):
    torch.save({**CARE_STATE, "stem.0.bias": change(CARE_STATE["stem.0.bias"])}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"stem\.conv\.bias is not made of plain floating-point numbers"):
        load("CARE", "s0", tmp_path / "odd.pth")


def test_the_count_of_averaged_steps_is_no_weight():
    raw = {"steps": torch.tensor(3), **prefixed(CARE_STATE, "module.")}
    state, _ = select_weights({"state_dict": CARE_STATE, "ema_state_dict": raw}, "raw")
    assert set(state) == set(CARE_STATE)


def test_only_unknown_leftovers_are_warned_of(tmp_path, monkeypatch):
    said = {}
    monkeypatch.setattr(
        "mmcare.checkpoint.print_log", lambda message, logger, level=logging.INFO: said.update({level: message})
    )
    torch.save({**CARE_STATE, "head.fc.weight": torch.zeros(1)}, tmp_path / "imagenet.pth")
    config = dict(type="mmcare.CARE", arch="s0", out_indices=(1,))
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "imagenet.pth"))
    MODELS.build(dict(config, init_cfg=init)).init_weights()
    assert "not used: stages.2." in said[logging.INFO]
    assert logging.WARNING not in said
    torch.save({**CARE_STATE, "stages.0.blocks.7.gamma": torch.zeros(1)}, tmp_path / "imagenet.pth")
    MODELS.build(dict(config, init_cfg=init)).init_weights()
    assert said[logging.WARNING].endswith("not used: stages.0.blocks.7.layer_scale.weight")


# -- downloads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server's address and its pages, with an empty cache for what is downloaded."""
    pages = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in pages:
                self.send_error(404)
                return
            content, promised = pages[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache/hub"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", pages, tmp_path / "cache"
        server.shutdown()


def checkpoint_page(value):
    buffer = io.BytesIO()
    torch.save({"a": torch.tensor(value)}, buffer)
    return buffer.getvalue(), len(buffer.getvalue())


@pytest.mark.stack
def test_a_download_is_kept_by_its_whole_address(web):
    address, pages, _ = web
    pages.update({"/v1/weights.pth": checkpoint_page(1), "/v2/weights.pth": checkpoint_page(2)})
    for _ in range(2):
        assert read_checkpoint(f"{address}/v1/weights.pth")["a"] == 1
        assert read_checkpoint(f"{address}/v2/weights.pth")["a"] == 2
        pages.update({"/v1/weights.pth": (b"", 0), "/v2/weights.pth": (b"", 0)})


@pytest.mark.parametrize("path", ["/a/..", "/", "/..%2f..%2fescaped.pth", "/" + "long" * 200, "/a\\..\\b", "/.bashrc"])
def test_no_address_leads_out_of_the_cache(web, path, tmp_path):
    address, pages, cache = web
    pages[path] = checkpoint_page(1)
    assert read_checkpoint(address + path)["a"] == 1
    (kept,) = (file for file in tmp_path.rglob("*") if file.is_file())
    assert kept.parent == cache / "hub/checkpoints"
    assert not kept.name.startswith(".")


BROKEN = {
    "cut": ((checkpoint_page(1)[0][:500], 900), "the connection ended after 500 of 900 bytes"),
    "web page": ((b"<html>Sign in</html>", 20), "is a web page"),
    "empty": ((b"", 0), "is empty"),
    "gone": (None, "HTTP Error 404"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_download_is_told_and_leaves_nothing(web, kind):
    address, pages, cache = web
    page, said = BROKEN[kind]
    if page:
        pages["/weights.pth"] = page
    with pytest.raises(UserError, match=f"{address}/weights.pth .*{said}") as error:
        read_checkpoint(f"{address}/weights.pth")
    assert "\n" not in str(error.value)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_a_server_that_is_not_there(web):
    with pytest.raises(UserError, match="could not be downloaded"):
        read_checkpoint("http://127.0.0.1:9/weights.pth")
    with pytest.raises(UserError, match="could not be downloaded"):
        read_checkpoint("http://127.0.0.1:port/weights.pth")
