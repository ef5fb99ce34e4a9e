"""The cases of a run: each subject in each form at each size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError
from ..runs import is_config
from .forms import check_form
from .subjects import Subject

if TYPE_CHECKING:
    from .exported import ExportedSubject


@dataclass(frozen=True)
class Case:
    """One subject in one form at one size.

    Attributes:
        subject: name of the subject; see :func:`~mmcare.benchmark.subjects.resolve`.
        part: ``"whole"`` or ``"backbone"``; of an exported file also ``"model"``, the whole with its decoding.
        form: see :data:`~mmcare.benchmark.forms.STEPS`; of an exported file its format, with its numbers.
        batch: images in a batch.
        shape: height and width of the images.
        device: ``"cpu"`` or ``"cuda"``.
        training: include a backward pass.
        exported: whether the subject is an exported file.
        precision: in which its runtime computes it; None for that of the file.
    """

    subject: str
    part: str
    form: str
    batch: int
    shape: tuple[int, int]
    device: str
    training: bool
    exported: bool = False
    precision: str | None = None

    def __str__(self) -> str:
        within = is_config(self.subject) or is_config(self.subject.rpartition("@")[0])
        alone = ", backbone alone" if self.part == "backbone" and within else ""
        return f"{self.subject} ({self.form}{alone}) at {self.shape[0]}×{self.shape[1]}"


def plan(
    subjects: Sequence[Subject | ExportedSubject],
    forms: Sequence[str],
    batch: int,
    shapes: Sequence[tuple[int, int]],
    device: str,
    training: bool,
) -> list[Case]:
    """Return the cases of a run. The forms of a subject at one size are adjacent, with the plain form first.

    Args:
        subjects, forms: each subject is measured in each form; the plain and reparameterized forms are for mmcare's
            models only. Exported files have one of their own; OpenVINO computes them in ``bf16``, too.
        batch: images in a batch.
        shapes: heights and widths of the images; empty for each subject's usual shape.
        device: ``"cpu"`` or ``"cuda"``.
        training: include a backward pass.

    Raises:
        UserError: no form applies to a subject, a form does not exist, or an image is too small for a subject.
    """
    steps = {form: set(check_form(form, training, device)) for form in forms}
    cases = []
    for subject in subjects:
        if not isinstance(subject, Subject):
            cases += subject.plan(forms, batch, shapes, device, training)
            continue
        own = [form for form in steps if subject.is_ours or not {"plain", "reparameterized"} & steps[form]]
        if not own:
            raise UserError(
                f"{subject.name} is not an mmcare model, so it has none of the forms {', '.join(forms)}: give eager"
            )
        own.sort(key=lambda form: form != "plain")
        for shape in shapes or [subject.shape]:
            subject.cost(subject.parts[0], *shape)  # raises an error if an image is too small, before anything runs
        for part in subject.parts:
            for shape in shapes or [subject.shape]:
                cases += [Case(subject.name, part, form, batch, shape, device, training) for form in own]
    return cases
