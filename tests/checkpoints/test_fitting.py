"""Selection of weights, messages about missing and unused ones, and refusal of misfits."""

import logging

import pytest
import torch
from helpers import backbone_weights, weights

from mmcare import UserError
from mmcare.checkpoints import read_checkpoint, select_weights

CARE_STATE = backbone_weights("CARE", "s0")
CASVIT_STATE = backbone_weights("CASViT", "xs")

# -- raw and averaged weights ------------------------------------------------------------------------------------------


def averaged(state):
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("file", "default"),
    [
        (lambda raw, ema: {"model": raw, "model_ema": ema}, "raw"),
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "raw"),
        # MMEngine's EMAHook saves the averaged weights in the main entry.
        (lambda raw, ema: {"state_dict": ema, "ema_state_dict": prefixed(raw, "module.")}, "ema"),
    ],
)
def test_raw_and_averaged_weights_can_be_chosen(file, default, tmp_path, pretrained, log):
    torch.save(file(CARE_STATE, averaged(CARE_STATE)), tmp_path / "both.pth")
    bias = {"raw": CARE_STATE["stem.0.bias"], "ema": CARE_STATE["stem.0.bias"] + 1}
    for asked in (None, "raw", "ema"):
        model = pretrained("CARE", "s0", tmp_path / "both.pth", **({} if asked is None else {"weights": asked}))
        taken = asked or default
        torch.testing.assert_close(model.stem.conv.bias.data, bias[taken])
        said = "\n".join(log)
        log.clear()
        assert ("averaged (EMA) weights under" if taken == "ema" else "raw weights under") in said
        assert 'weights="ema"' in said


def test_asking_for_weights_that_are_not_there(tmp_path, pretrained):
    torch.save(CARE_STATE, tmp_path / "raw.pth")
    with pytest.raises(UserError, match=r"raw\.pth.*no averaged"):
        pretrained("CARE", "s0", tmp_path / "raw.pth", weights="ema")
    with pytest.raises(UserError, match="weights='best'"):
        pretrained("CARE", "s0", tmp_path / "raw.pth", weights="best")


def test_the_count_of_averaged_steps_is_no_weight():
    raw = {"steps": torch.tensor(3), **prefixed(CARE_STATE, "module.")}
    state, _ = select_weights({"state_dict": CARE_STATE, "ema_state_dict": raw}, "raw")
    assert set(state) == set(CARE_STATE)


def test_what_is_no_named_tensor_is_passed_over(tmp_path, pretrained):
    torch.save({"state_dict": {**CARE_STATE, 3: torch.zeros(1), "version": 2, "nested": {}}}, tmp_path / "odd.pth")
    state, _ = select_weights(read_checkpoint(tmp_path / "odd.pth"))
    assert set(state) == set(CARE_STATE)


@pytest.mark.parametrize("content", [{0: torch.zeros(2)}, {"epoch": 3}])
def test_a_file_without_named_weights(content, tmp_path, pretrained):
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth: the checkpoint holds no named weights"):
        pretrained("CARE", "s0", tmp_path / "none.pth")


# -- missing and unused weights ----------------------------------------------------------------------------------------


def test_what_was_not_found_is_warned_of(tmp_path, pretrained, levels):
    torch.save({"model": weights("CASViT", "xs", "classifier")}, tmp_path / "imagenet.pth")
    model = pretrained("CASViT", "xs", tmp_path / "imagenet.pth")
    assert (model.out_norms["0"].weight == 1).all()
    (said,) = levels[logging.WARNING]
    assert "left at their initial values: out_norms.0.weight" in said
    assert "stem" not in said
    assert any("not used: norm.weight" in news for news in levels[logging.INFO])


def test_only_unknown_leftovers_are_warned_of(tmp_path, pretrained, levels):
    file = tmp_path / "imagenet.pth"
    torch.save({**CARE_STATE, "head.fc.weight": torch.zeros(1)}, file)
    pretrained("CARE", "s0", file, out_indices=(1,))
    assert any("not used: stages.2." in news for news in levels[logging.INFO])
    assert not levels[logging.WARNING]
    torch.save({**CARE_STATE, "stages.0.blocks.7.gamma": torch.zeros(1)}, file)
    pretrained("CARE", "s0", file, out_indices=(1,))
    (said,) = levels[logging.WARNING]
    assert said.endswith("not used: stages.0.blocks.7.layer_scale.weight")


# -- misfits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "state", "said"),
    [
        ("s2", CARE_STATE, "does not fit CARE s2.*differ in shape.*its backbone is CARE s0"),
        ("s0", CASVIT_STATE, "does not fit CARE s0.*none of its weights.*its backbone is CASViT xs"),
        ("s0", {"neck.conv.weight": torch.zeros(1)}, "none of its weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(arch, state, said, tmp_path, pretrained):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth {said}|{said}") as error:
        pretrained("CARE", arch, tmp_path / "other.pth")
    assert "other.pth" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change", [torch.Tensor.to_sparse, lambda value: value.to(torch.int8), lambda value: value.to("meta")]
)
def test_weights_that_are_no_plain_numbers_are_refused(change, tmp_path, pretrained):
    torch.save({**CARE_STATE, "stem.0.bias": change(CARE_STATE["stem.0.bias"])}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"stem\.conv\.bias is not a plain floating-point tensor"):
        pretrained("CARE", "s0", tmp_path / "odd.pth")
