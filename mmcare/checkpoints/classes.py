"""Fitting the class layers of a checkpoint to a model for other classes, as to start a training from it.

The rows of a class layer belong to classes, in the order of the data set's class names. A class that the checkpoint and
the model have in common keeps its rows; the other rows of the model keep their initial values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from .fitting import CLASS_LAYERS, by_model_names, is_plain, list_names, unwrapped


@dataclass(frozen=True)
class _ClassLayer:
    """A class layer, whose rows are those of an (anchors, classes + others, coordinates) array."""

    name: str
    head: str
    anchors: int
    classes: int
    others: int
    """Rows per anchor, after those of the classes, that belong to no class of the data set: the background's."""
    coordinates: int

    def split(self, weight: Tensor) -> Tensor:
        """Return a weight, the model's or a checkpoint's, with the rows in three dimensions; a view if contiguous."""
        return weight.reshape(self.anchors, -1, self.coordinates, *weight.shape[1:])

    def classes_in(self, weight: Tensor) -> int | None:
        """Return for how many classes a checkpoint's weight of this layer is; None if it is for another layout."""
        rows, rest = divmod(len(weight), self.anchors * self.coordinates)
        return None if rest or rows <= self.others else rows - self.others


def class_names(meta: Any) -> tuple[str, ...] | None:
    """Return the class names in a dataset's ``metainfo``, or in the ``meta`` of a checkpoint of any OpenMMLab trainer.

    Returns:
        The names in the order of the labels; None if there are none, or not a list of different strings.
    """
    meta = meta if isinstance(meta, Mapping) else {}
    names = next((meta[key] for key in ("classes", "CLASSES") if key in meta), None)
    if names is None and "dataset_meta" in meta:
        return class_names(meta["dataset_meta"])
    listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed and names and len(set(names)) == len(names) else None


def fit_classes(
    model: nn.Module,
    state: Mapping[str, Tensor],
    names: tuple[str, ...] | None,
    model_names: tuple[str, ...] | None,
    source: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a checkpoint's weights with class layers for a model's classes, and what was done to them.

    The rows of classes that both sides have are the checkpoint's, and so is the background's; all others are the
    model's. Without names on one of the sides, the class layers are the checkpoint's if it has as many classes, and
    otherwise the model's. Whether the other weights fit is left to :func:`fit_weights`.

    Args:
        model: the initialized model; wrappers are removed.
        state: the checkpoint's weights, with the model's names or the backbone authors' names.
        names: the checkpoint's classes in the order of its labels; None if unknown.
        model_names: the classes of the data set that the model is for, likewise.
        source: name of the checkpoint in messages.

    Returns:
        The weights, and a sentence for the log for each pair of class counts of which layers were changed.

    Raises:
        UserError: layers of one head are for different numbers of classes in the checkpoint.
    """
    model = unwrapped(model)
    own = model.state_dict()
    state = by_model_names(model, state)
    fitted = dict(state)
    changed: dict[tuple[int, int], list[_ClassLayer]] = {}
    counts: dict[str, int] = {}  # the checkpoint's number of classes by head
    for layer in _class_layers(model):
        weight = state.get(f"{layer.name}.weight")
        count = None if weight is None or not weight.dim() else layer.classes_in(weight)
        if count is None:
            continue
        if counts.setdefault(layer.head, count) != count:
            raise UserError(
                f"{source} does not fit the model: its {layer.head} is for {counts[layer.head]} classes, but "
                f"{layer.name} for {count}; is it for another head, such as one with reg_class_agnostic?"
            )
        changed.setdefault((count, layer.classes), []).append(layer)

    notes = []
    for (count, model_count), layers in changed.items():
        if count == model_count and names and names == model_names:
            continue
        unnamed = _why_unnamed(names, count, source) or _why_unnamed(model_names, model_count, "the data set")
        where = list_names([layer.name for layer in layers])
        where = f"{source} has {count} classes, the model {model_count}; in {where}"
        if unnamed and count == model_count:
            notes.append(f"{where}, rows are taken as they are, because {unnamed}")
            continue
        shared = {} if unnamed else {new: names.index(name) for new, name in enumerate(model_names) if name in names}
        for layer in layers:
            _carry_rows(layer, own, fitted, shared, count)
        told = f"all rows start anew, because {unnamed}" if unnamed else _told(shared, model_names)
        notes.append(f"{where}, {told}")
    return fitted, notes


def _class_layers(model: nn.Module) -> Iterator[_ClassLayer]:
    for head, module in model.named_modules():
        for leaf in CLASS_LAYERS:
            layer = getattr(module, leaf, None)
            if not isinstance(layer, nn.Module) or _serves_all_classes_alike(module, leaf):
                continue
            rows, classes = len(layer.weight), module.num_classes
            anchors = module.num_base_priors if leaf == "retina_cls" else 1
            coordinates = rows // classes if leaf == "fc_reg" else 1
            others = rows // (anchors * coordinates) - classes
            if others >= 0:  # a segmentor with one output for two classes has fewer rows, and no class to tell apart
                yield _ClassLayer(f"{head}.{leaf}", head, anchors, classes, others, coordinates)


def _serves_all_classes_alike(head: nn.Module, leaf: str) -> bool:
    """Return whether a layer has the same rows whatever the classes are, as DETR's fc_reg does without saying so."""
    option = {"fc_reg": "reg_class_agnostic", "conv_logits": "class_agnostic"}.get(leaf)
    return option is not None and getattr(head, option, True)


def _carry_rows(
    layer: _ClassLayer, own: Mapping[str, Tensor], state: dict[str, Tensor], shared: Mapping[int, int], count: int
) -> None:
    """Replace a layer's weights in ``state`` by the model's with the checkpoint's rows of the shared classes."""
    for name in (f"{layer.name}.weight", f"{layer.name}.bias"):
        given, weight = state.get(name), own.get(name)
        if given is None or weight is None or not is_plain(given):
            continue
        if given.shape != (layer.anchors * (count + layer.others) * layer.coordinates, *weight.shape[1:]):
            continue  # refused when the weights are fitted
        weight = weight.detach().to(given.device, copy=True).contiguous()
        rows, given_rows = layer.split(weight), layer.split(given).to(weight.dtype)
        rows[:, list(shared)] = given_rows[:, list(shared.values())]
        rows[:, layer.classes :] = given_rows[:, count:]
        state[name] = weight


def _why_unnamed(names: tuple[str, ...] | None, count: int, source: str) -> str | None:
    """Return why names do not tell the classes of so many rows; None if they do."""
    if names is None:
        return f"{source} names no classes"
    return None if len(names) == count else f"{source} names {len(names)} classes"


def _told(shared: Mapping[int, int], model_names: tuple[str, ...]) -> str:
    """Return which classes keep their rows, and which start anew."""
    kept = [name for new, name in enumerate(model_names) if new in shared]
    fresh = [name for new, name in enumerate(model_names) if new not in shared]
    parts = [f"{len(kept)} ({list_names(kept)}) are taken by name"] if kept else []
    parts += [f"{len(fresh)} ({list_names(fresh)}) start anew"] if fresh else []
    return "the rows of " + ", those of ".join(parts)
