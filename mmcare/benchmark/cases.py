"""What a run measures: each subject in each form at each size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from .forms import check_form
from .subjects import Subject


@dataclass(frozen=True)
class Case:
    """One subject in one form at one size.

    Attributes:
        subject: its name, see :func:`~mmcare.benchmark.subjects.resolve`.
        part: ``"whole"`` or ``"backbone"``.
        form: see :data:`~mmcare.benchmark.forms.STEPS`.
        batch, shape: of the images.
        device: ``"cpu"`` or ``"cuda"``.
        training: with a backward pass.
    """

    subject: str
    part: str
    form: str
    batch: int
    shape: tuple[int, int]
    device: str
    training: bool

    def __str__(self) -> str:
        alone = ", backbone alone" if self.part == "backbone" and ".py" in self.subject else ""
        return f"{self.subject} ({self.form}{alone}) at {self.shape[0]}×{self.shape[1]}"


def plan(
    subjects: Sequence[Subject],
    forms: Sequence[str],
    batch: int,
    shapes: Sequence[tuple[int, int]],
    device: str,
    training: bool,
) -> list[Case]:
    """Return all that a run measures, a subject's forms at one size together and its plain form first among them.

    Args:
        subjects, forms: each form of each subject, except the plain and the reparameterized forms of what is not ours.
        batch: images in a batch.
        shapes: of the images; none for each subject's usual one.
        device: ``"cpu"`` or ``"cuda"``.
        training: with a backward pass.

    Raises:
        UserError: there is nothing to measure of a subject, no such form, or an image is too small for a subject.
    """
    steps = {form: set(check_form(form, training, device)) for form in forms}
    cases = []
    for subject in subjects:
        own = [form for form in steps if subject.is_ours or not {"plain", "reparameterized"} & steps[form]]
        if not own:
            raise UserError(
                f"none of the forms {', '.join(forms)} is one of {subject.name}'s: it is not ours, give eager"
            )
        own.sort(key=lambda form: form != "plain")
        for shape in shapes or [subject.shape]:
            subject.cost(subject.parts[0], *shape)  # tells of an image that is too small, before anything runs
        for part in subject.parts:
            for shape in shapes or [subject.shape]:
                cases += [Case(subject.name, part, form, batch, shape, device, training) for form in own]
    return cases
