"""The classifiers of the published networks, as heads of MMPretrain's ``ImageClassifier``.

Both networks were trained with hard distillation (https://arxiv.org/abs/2012.12877): one linear classifier learns the
labels, and a second one of the same shape what a teacher says. Their mean is the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from ..stack import check_stack
from .base import whole_number

if TYPE_CHECKING:
    from mmpretrain.structures import DataSample


class ClassifierHead(BaseModule):
    """Two linear classifiers on the average over all positions of the last map: one for labels, one for a teacher.

    Args:
        num_classes: number of classes.
        in_channels: width of the backbone's last map.
        loss: config of the loss of scores (B, num_classes) and labels, (B,) or as probabilities (B, num_classes).
        init_cfg: None for the authors' initialization, or an MMEngine init config.

    Attributes:
        teacher_scores: a teacher's logits (B, num_classes) for the images of the next loss, which
            :class:`mmcare.runs.hooks.DistillationHook` sets; None without one.

    Raises:
        UserError: ``num_classes`` or ``in_channels`` is invalid, or MMPretrain is not installed.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0))
        self.num_classes = whole_number("num_classes", num_classes, low=1)
        self.in_channels = whole_number("in_channels", in_channels, low=1)
        check_stack(needs=("mmpretrain",))  # also imports MMPretrain where there is no torchvision
        self.loss_module = MODELS.build(loss or dict(type="mmpretrain.LabelSmoothLoss", label_smooth_val=0.1))
        self.label_fc = nn.Linear(in_channels, num_classes)
        self.dist_fc = nn.Linear(in_channels, num_classes)
        self.teacher_scores: Tensor | None = None

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the average over all positions of the last of the maps: (B, in_channels)."""
        return feats[-1].mean((2, 3))

    def scores(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits of the classifier that learns labels and of the one that learns from a teacher.

        Args:
            feats: the backbone's maps; the last is (B, in_channels, H, W).

        Returns:
            Two times (B, num_classes).
        """
        features = self.pre_logits(feats)
        return self.label_fc(features), self.dist_fc(features)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the logits, the mean of both classifiers': (B, num_classes)."""
        label, dist = self.scores(feats)
        return (label + dist) / 2

    def loss(self, feats: Sequence[Tensor], data_samples: Sequence[DataSample]) -> dict[str, Tensor]:
        """Return the losses of both classifiers, which add up to ½ L(label, y) + ½ L(dist, y).

        With a teacher they add up to the hard distillation of DeiT's equation 3: ½ L(label, y) + ½ CE(dist, y_t), with
        y_t the class that the teacher gives the highest score.

        Args:
            feats: the backbone's maps; the last is (B, in_channels, H, W).
            data_samples: B samples with labels, or with probabilities after Mixup and CutMix.

        Raises:
            UserError: the teacher has another number of classes.
        """
        label, dist = self.scores(feats)
        if "gt_score" in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])
        losses = dict(loss_label=self.loss_module(label, target, avg_factor=len(label)) / 2)
        teacher = self.teacher_scores
        if teacher is None:
            losses["loss_dist"] = self.loss_module(dist, target, avg_factor=len(dist)) / 2
        elif teacher.shape != dist.shape:
            raise UserError(
                f"the teacher has {teacher.shape[1]} classes, but the model {self.num_classes}: give a teacher for the "
                "same classes"
            )
        else:
            losses["loss_dist"] = F.cross_entropy(dist, teacher.argmax(1)) / 2
        return losses

    def predict(
        self, feats: Sequence[Tensor], data_samples: Sequence[DataSample | None] | None = None
    ) -> list[DataSample]:
        """Return samples with the probabilities of the classes and the most probable one.

        Args:
            feats: the backbone's maps; the last is (B, in_channels, H, W).
            data_samples: B samples to complete, or None for new ones.
        """
        from mmpretrain.structures import DataSample

        probabilities = self(feats).softmax(1)
        samples = data_samples or [None] * len(probabilities)
        return [
            (sample or DataSample()).set_pred_score(each).set_pred_label(each.argmax(0, keepdim=True))
            for sample, each in zip(samples, probabilities, strict=True)
        ]


@MODELS.register_module()
class CAREHead(ClassifierHead):
    """CARE's classifier: for each of both, LayerNorm(GELU(average over all positions)), then a linear layer.

    The arguments and errors are :class:`ClassifierHead`'s.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, loss, init_cfg)
        self.label_norm = nn.LayerNorm(in_channels, eps=1e-6)
        self.dist_norm = nn.LayerNorm(in_channels, eps=1e-6)

    def scores(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        features = F.gelu(self.pre_logits(feats))
        return self.label_fc(self.label_norm(features)), self.dist_fc(self.dist_norm(features))


@MODELS.register_module()
class CASViTHead(ClassifierHead):
    """CAS-ViT's classifier: for each of both, a linear layer on the average over all positions.

    The norm before the average is the backbone's own, that of its last map.

    The arguments and errors are :class:`ClassifierHead`'s.
    """
