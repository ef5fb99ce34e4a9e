"""A hook that lets a classifier learn from a teacher, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from ...checkpoints import load_checkpoint, unwrapped
from ...errors import UserError
from ...models import ClassifierHead
from ...registry import HOOKS
from ..configs import load_config, task_of


@HOOKS.register_module()
class DistillationHook(Hook):
    """Train a classifier with hard distillation, as DeiT (https://arxiv.org/abs/2012.12877) and as both networks were.

    The head's classifier for labels learns the labels, the other one the class to which the teacher gives the highest
    score; :meth:`mmcare.models.ClassifierHead.loss` has the formula. The teacher sees the images that the model sees,
    after all augmentation. It is no part of the model, so checkpoints and averaged weights have none of it.

    Args:
        teacher: file of an MMPretrain config for the same classes.
        checkpoint: the teacher's checkpoint, file or http(s) address.
    """

    def __init__(self, teacher: str | Path, checkpoint: str | Path) -> None:
        self.config = str(teacher)
        self.checkpoint = checkpoint

    def before_train(self, runner: Runner) -> None:
        """Load the teacher.

        Raises:
            UserError: a file cannot be read, the two do not belong together, the teacher is no classifier or for
                another number of classes, or the model that is trained has no head for distillation.
        """
        model = unwrapped(runner.model)
        if not isinstance(getattr(model, "head", None), ClassifierHead):
            raise UserError(
                f"DistillationHook trains classifiers with mmcare.CAREHead or mmcare.CASViTHead, and the model is a "
                f"{type(model).__name__} without one: give it one of these heads"
            )
        cfg = load_config(self.config, parts=("model",))
        if task_of(cfg) != "classification":
            raise UserError(f"the teacher {self.config} is for {task_of(cfg)}: give the config of a classifier")
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            settings = dict(cfg.model)
            if cfg.get("data_preprocessor"):
                settings.setdefault("data_preprocessor", cfg.data_preprocessor)
            teacher = MODELS.build(settings)
        load_checkpoint(teacher, self.checkpoint)
        classes = getattr(teacher.head, "num_classes", model.head.num_classes)
        if classes != model.head.num_classes:
            raise UserError(
                f"the teacher {self.config} has {classes} classes, but the model {model.head.num_classes}: give a "
                "teacher for the same classes"
            )
        teacher.requires_grad_(False).eval().to(next(model.parameters()).device)
        renormalize = _Renormalization(model.data_preprocessor, teacher.data_preprocessor)

        def ask(backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
            if backbone.training:
                with torch.no_grad():
                    model.head.teacher_scores = teacher(renormalize(inputs[0]), mode="tensor")

        self._handle = model.backbone.register_forward_pre_hook(ask)

    def after_train(self, runner: Runner) -> None:
        """Let go of the teacher."""
        self._handle.remove()
        unwrapped(runner.model).head.teacher_scores = None


class _Renormalization:
    """Changes the normalization of images from one data preprocessor's to another's.

    Raises:
        UserError: only one of them has RGB images.
    """

    def __init__(self, own: nn.Module, other: nn.Module) -> None:
        if own.to_rgb != other.to_rgb:
            raise UserError("the teacher and the model take images of different colour order: set the same to_rgb")
        (mean, std), (other_mean, other_std) = map(_mean_and_std, (own, other))
        self.scale, self.shift = std / other_std, (mean - other_mean) / other_std

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → the same shape."""
        return images * self.scale + self.shift


def _mean_and_std(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what a data preprocessor subtracts and divides by, (3, 1, 1) each."""
    zero = torch.zeros(1, 1, 1, device=preprocessor.device)
    return getattr(preprocessor, "mean", zero), getattr(preprocessor, "std", zero + 1)
