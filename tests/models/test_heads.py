"""The classifiers: agreement with the authors', in MMPretrain's ImageClassifier, and their losses."""

import sys

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import relative_error
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

import mmcare
from mmcare import CAREHead, CASViTHead, UserError
from mmcare.importing_mmpretrain import torchvision_or_stand_in
from mmcare.stack import check_stack

check_stack(["mmpretrain"])

from mmpretrain.structures import DataSample  # noqa: E402 (MMPretrain is imported by check_stack if there is no torchvision)

WIDTHS = dict(zip(helpers.ARCHS, (1024, 1024, 1536, 220, 256, 384, 512), strict=True))
smallest = pytest.mark.parametrize(("family", "arch"), [("CARE", "s0"), ("CASViT", "xs")])
heads = pytest.mark.parametrize("head", [CAREHead, CASViTHead])


def classifier(family, arch, num_classes=1000, **arguments):
    model = dict(
        type="ImageClassifier",
        backbone=dict(type=f"mmcare.{family}", arch=arch, out_indices=(3,)),
        head=dict(type=f"mmcare.{family}Head", num_classes=num_classes, in_channels=WIDTHS[family, arch]),
        **arguments,
    )
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(model)


def write_authors(path, family, arch):
    state = helpers.weights(family, arch, "classifier")
    torch.save(state if family == "CARE" else {"model": state}, path)
    return state


def logits(model):
    with torch.no_grad():
        return model.eval()(helpers.image(), mode="tensor")


# -- the authors' files ------------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize(("family", "arch"), helpers.ARCHS)
def test_the_authors_file_gives_the_authors_logits_and_every_weight_is_used(family, arch, tmp_path, log):
    state = write_authors(tmp_path / "authors.pth", family, arch)
    model = classifier(family, arch)
    mmcare.load_checkpoint(model, tmp_path / "authors.pth")
    assert relative_error(logits(model), helpers.expected_logits(family, arch)) < 1e-5
    assert not any("not used" in message for message in log)
    assert sum(value.numel() for value in model.state_dict().values()) == sum(value.numel() for value in state.values())


@pytest.mark.stack
@pytest.mark.parametrize("way", ["init_cfg", "load_from", "load_state_dict"])
@smallest
def test_every_way_of_loading_gives_the_authors_logits(family, arch, way, tmp_path, own_process):
    state = write_authors(tmp_path / "authors.pth", family, arch)
    mmcare.make_loading_safe()
    if way == "init_cfg":
        model = classifier(family, arch, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "authors.pth")))
        model.init_weights()
    elif way == "load_from":
        model = classifier(family, arch)
        runner = Runner(model, str(tmp_path), custom_hooks=[dict(type="mmcare.CheckpointFitHook")])
        runner.load_checkpoint(str(tmp_path / "authors.pth"))
    else:
        model = classifier(family, arch)
        model.load_state_dict(state)
    assert relative_error(logits(model), helpers.expected_logits(family, arch)) < 1e-5


@smallest
def test_a_trained_classifier_is_saved_and_loaded_under_its_own_names(family, arch, tmp_path):
    model, other = classifier(family, arch), classifier(family, arch)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "ours.pth")
    mmcare.load_checkpoint(other, tmp_path / "ours.pth")
    nn.ModuleDict(dict(teacher=other)).load_state_dict(
        {f"teacher.{name}": value for name, value in model.state_dict().items()}
    )
    assert relative_error(logits(other), logits(model)) < 1e-6
    head = {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
    assert not classifier(family, arch).load_state_dict(head, strict=False).unexpected_keys


@smallest
def test_a_backbone_gets_its_weights_from_a_classifier(family, arch, tmp_path):
    model = classifier(family, arch)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "ours.pth")
    backbone = MODELS.build(dict(type=f"mmcare.{family}", arch=arch, out_indices=(3,)))
    mmcare.load_checkpoint(backbone, tmp_path / "ours.pth")
    for value, loaded in zip(model.backbone.state_dict().values(), backbone.state_dict().values(), strict=True):
        assert torch.equal(value, loaded)


@smallest
def test_a_file_without_the_heads_is_refused_in_one_sentence(family, arch, tmp_path):
    torch.save(classifier(family, arch).backbone.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"lacks \d of the model's weights: head\..* of a backbone alone") as error:
        mmcare.load_checkpoint(classifier(family, arch), tmp_path / "backbone.pth")
    assert "\n" not in str(error.value)


@smallest
def test_a_file_for_other_classes_is_refused_but_may_start_a_training(family, arch, tmp_path, own_process):
    state = write_authors(tmp_path / "authors.pth", family, arch)
    model = classifier(family, arch, num_classes=10)
    with pytest.raises(UserError, match="it has 1000 classes, the model has 10"):
        mmcare.load_checkpoint(model, tmp_path / "authors.pth")
    before = model.head.label_fc.weight.clone()
    mmcare.make_loading_safe()
    runner = Runner(model, str(tmp_path), custom_hooks=[dict(type="mmcare.CheckpointFitHook", require_all=False)])
    runner.load_checkpoint(str(tmp_path / "authors.pth"))
    assert torch.equal(model.head.label_fc.weight, before)
    name = "stem.0.weight" if family == "CARE" else "patch_embed.0.weight"
    assert torch.equal(next(model.backbone.stem.parameters()), state[name])


# -- the heads ---------------------------------------------------------------------------------------------------------


def build_head(head, **arguments):
    torch.manual_seed(0)
    built = head(num_classes=5, in_channels=8, **arguments)
    built.init_weights()
    return built


@pytest.fixture
def feats():
    return (torch.randn(3, 8, 2, 4, generator=torch.Generator().manual_seed(1)),)


@heads
def test_the_logits_are_the_mean_of_both_in_either_mode(head, feats):
    built = build_head(head)
    label, dist = built.scores(feats)
    assert label.shape == dist.shape == (3, 5)
    assert not torch.allclose(label, dist)
    for training in (True, False):
        torch.testing.assert_close(built.train(training)(feats), (label + dist) / 2)


@heads
def test_the_losses_are_those_of_both_to_the_labels(head, feats):
    built, classes = build_head(head), torch.tensor([3, 0, 2])
    samples = [DataSample().set_gt_label(int(index)) for index in classes]
    found = built.loss(feats, samples)
    wanted = [F.cross_entropy(scores, classes, label_smoothing=0.1) / 2 for scores in built.scores(feats)]
    torch.testing.assert_close([found["loss_label"], found["loss_dist"]], wanted)
    assert set(found) == {"loss_label", "loss_dist"}


@heads
def test_the_losses_take_the_mixed_labels_of_batch_augments(head, feats):
    built, mixed = build_head(head), torch.rand(3, 5).softmax(1)
    samples = [DataSample().set_gt_score(each) for each in mixed]
    found = built.loss(feats, samples)
    wanted = [F.cross_entropy(scores, mixed, label_smoothing=0.1) / 2 for scores in built.scores(feats)]
    torch.testing.assert_close([found["loss_label"], found["loss_dist"]], wanted)


@heads
def test_with_a_teacher_the_gradients_are_those_of_hard_distillation(head, feats):
    """Equation 3 of DeiT: ½ CE(ψ(Z_s), y) + ½ CE(ψ(Z_s), y_t), with y_t = argmax_c Z_t(c), each for its classifier."""
    built, classes = build_head(head, loss=dict(type="mmpretrain.CrossEntropyLoss")), torch.tensor([3, 0, 2])
    teacher = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    samples = [DataSample().set_gt_label(int(index)) for index in classes]
    built.teacher_scores, parameters = teacher, list(built.parameters())
    found = torch.autograd.grad(sum(built.loss(feats, samples).values()), parameters)
    label, dist = (scores.log_softmax(1) for scores in built.scores(feats))
    picked = [label[i, classes[i]] + dist[i, teacher[i].argmax()] for i in range(3)]
    torch.testing.assert_close(found, torch.autograd.grad(-sum(picked) / 6, parameters))


@heads
def test_a_teacher_for_other_classes_is_refused(head, feats):
    built, samples = build_head(head), [DataSample().set_gt_label(0)] * 3
    built.teacher_scores = torch.zeros(3, 7)
    with pytest.raises(UserError, match="the teacher has 7 classes, but the model 5"):
        built.loss(feats, samples)


@heads
def test_predictions_are_the_probabilities_and_the_best_class(head, feats):
    built = build_head(head)
    wanted = built(feats).softmax(1)
    given = [DataSample(metainfo=dict(img_path=str(index))) for index in range(3)]
    for samples in (built.predict(feats), built.predict(feats, given)):
        torch.testing.assert_close(torch.stack([sample.pred_score for sample in samples]), wanted)
        assert [int(sample.pred_label) for sample in samples] == wanted.argmax(1).tolist()
    assert [sample.img_path for sample in samples] == ["0", "1", "2"]


@pytest.mark.parametrize("wrong", [dict(num_classes=0), dict(num_classes=2.5), dict(in_channels=0)])
@heads
def test_impossible_arguments_of_heads_are_named(head, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value} is not valid"):
        head(**{"num_classes": 5, "in_channels": 8, **wrong})


# -- without torchvision -----------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_where_torchvision_cannot_be_imported_its_stand_in_can_and_says_so_when_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with torchvision_or_stand_in():
        import torchvision.transforms.functional as functional
        from torchvision import transforms
        from torchvision.ops import boxes

    assert [name for name in sys.modules if name.startswith("torchvision.")] == []
    assert sys.modules["torchvision"] is None

    class OwnCrop(transforms.RandomResizedCrop):
        pass

    for used, name in [
        (OwnCrop, "RandomResizedCrop"),
        (functional.pil_to_tensor, "pil_to_tensor"),
        (boxes.box_area, "box_area"),
    ]:
        with pytest.raises(UserError, match=f"{name} of torchvision is needed, which cannot be imported"):
            used(224)
