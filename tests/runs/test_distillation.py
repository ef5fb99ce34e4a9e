"""Hard distillation: the gradients of the formula, and what cannot teach."""

from types import SimpleNamespace

import pytest
import torch
from helpers import CONFIGS, DETECTION, SMALL_ARCHS, shake
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, DefaultScope
from torch import nn

from mmcare import UserError
from mmcare.stack import check_stack

check_stack(["mmpretrain"])

from mmpretrain.structures import DataSample  # noqa: E402 (MMPretrain is imported by check_stack if there is no torchvision)

STUDENT = f"""
_base_ = "{CONFIGS}/classification/care_s0.py"
model = dict(
    backbone=dict(arch=dict(**{SMALL_ARCHS["CARE"]}, _delete_=True), drop_path_rate=0.0),
    head=dict(num_classes=5, in_channels=256, loss=dict(type="CrossEntropyLoss", _delete_=True)),
    data_preprocessor=dict(num_classes=5),
    train_cfg=None,
)
"""
TEACHER = f"""
_base_ = "{CONFIGS}/classification/casvit_xs.py"
model = dict(
    backbone=dict(arch=dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24), _delete_=True)),
    head=dict(num_classes=5, in_channels=24),
    data_preprocessor=dict(num_classes=5, mean=[20.0, 200.0, 60.0], std=[20.0, 90.0, 30.0]),
)
"""


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


def build(text):
    torch.manual_seed(0)
    return shake(MODELS.build(Config.fromstring(text, ".py").model))


def write_teacher(folder, text=TEACHER):
    """Return the teacher and its hook."""
    (folder / "teacher.py").write_text(text)
    teacher = build(text).eval()
    for layer in (teacher.head.label_fc, teacher.head.dist_fc):  # decisive, so that images get different classes
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    torch.save(dict(state_dict=teacher.state_dict()), folder / "teacher.pth")
    hook = dict(type="mmcare.DistillationHook", teacher=folder / "teacher.py", checkpoint=folder / "teacher.pth")
    return teacher, HOOKS.build(hook)


@pytest.mark.stack
def test_the_gradients_are_those_of_the_formula(tmp_path):
    """Equation 3 of DeiT, with a teacher that sees the model's images in its own normalization."""
    teacher, hook = write_teacher(tmp_path)
    student = build(STUDENT).train()
    runner = SimpleNamespace(model=student)
    hook.before_train(runner)
    colours = torch.randint(0, 256, (6, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    images = colours.expand(-1, -1, 64, 64).to(torch.uint8)
    labels = torch.tensor([3, 0, 2, 4, 1, 1])
    samples = [DataSample().set_gt_label(int(label)) for label in labels]

    batch = student.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    parameters = [value for value in student.parameters() if value.requires_grad]
    found = torch.autograd.grad(sum(student(**batch, mode="loss").values()), parameters)

    taught = teacher(teacher.data_preprocessor(dict(inputs=images))["inputs"], mode="tensor").argmax(1)
    assert len(set(taught.tolist())) > 1
    assert taught.tolist() != labels.tolist()
    label, dist = (scores.log_softmax(1) for scores in student.head.scores(student.backbone(batch["inputs"])))
    picked = label.gather(1, labels[:, None]) + dist.gather(1, taught[:, None])
    wanted = torch.autograd.grad(-picked.sum() / 12, parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)

    hook.after_train(runner)
    assert student.head.teacher_scores is None
    student(**batch, mode="loss")
    assert student.head.teacher_scores is None


def test_the_teacher_is_no_part_of_the_model_and_is_not_asked_in_tests(tmp_path):
    _, hook = write_teacher(tmp_path)
    student = build(STUDENT)
    names = list(student.state_dict())
    hook.before_train(SimpleNamespace(model=student))
    assert list(student.state_dict()) == names
    student.eval()(torch.zeros(1, 3, 64, 64), mode="tensor")
    assert student.head.teacher_scores is None


def test_a_model_without_the_pair_of_heads_is_refused(tmp_path):
    _, hook = write_teacher(tmp_path)
    with pytest.raises(UserError, match=r"the model is a Linear without one: give it one of these heads"):
        hook.before_train(SimpleNamespace(model=nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("num_classes=5", "num_classes=7"), r"teacher.py has 7 classes, but the model 5: give a teacher for the same"),
        (
            ("num_classes=5, mean", "num_classes=5, to_rgb=False, mean"),
            "of different colour order: set the same to_rgb",
        ),
    ],
)
def test_what_cannot_teach_is_refused(changes, said, tmp_path):
    _, hook = write_teacher(tmp_path, TEACHER.replace(*changes))
    with pytest.raises(UserError, match=said):
        hook.before_train(SimpleNamespace(model=build(STUDENT)))


def test_a_detector_cannot_teach(tmp_path):
    hook = HOOKS.build(dict(type="mmcare.DistillationHook", teacher=DETECTION, checkpoint="none.pth"))
    with pytest.raises(
        UserError, match=r"the teacher .*retinanet_care_s1.py is for detection: give the config of a cla"
    ):
        hook.before_train(SimpleNamespace(model=build(STUDENT)))


def test_a_missing_teacher_is_told(tmp_path):
    _, hook = write_teacher(tmp_path)
    (tmp_path / "teacher.pth").unlink()
    with pytest.raises(UserError, match=r"there is no checkpoint .*teacher.pth"):
        hook.before_train(SimpleNamespace(model=build(STUDENT)))
