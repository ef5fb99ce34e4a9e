"""Exported files as subjects: rows of the same table, each in its runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..errors import UserError
from ..runs import config_difference
from ..runtime import ExportedFile, compare_probe, draw_probe, open_file
from .cases import Case
from .memory import resident_peak
from .subjects import SHAPES, Subject
from .timing import Findings

PARTS = {"model": "model", "network": "whole", "backbone": "backbone"}
"""The part of a row by the part of a model in a file; the whole of a subject in PyTorch has no decoding."""
PRECISIONS = {"openvino": ("bf16",)}
"""The forms in which a file in float32 is measured, too, by its format: its runtime computes it in them."""


class ExportedSubject:
    """An exported file to measure.

    Args:
        name: its path.

    Attributes:
        name: its path.
        part: what of a network it is, as in a row.
        form: its format, and its numbers if they are smaller.
        network: the subject in PyTorch that has the same network; None if there is none.

    Raises:
        FileError: the file cannot be opened.
    """

    def __init__(self, name: str) -> None:
        file = open_file(name)
        self.name, self.takes = name, file.takes
        self._certificate = file.certificate
        self.part = PARTS[file.certificate.part]
        self.form = " ".join(
            (file.certificate.format, *filter(None, [(file.certificate.quantization or {}).get("kind")]))
        )
        self.network: Subject | None = None

    def find_network(self, subjects: Sequence[Subject]) -> None:
        """Look among subjects in PyTorch for the network of the file, which its certificate describes."""
        part = "backbone" if self.part == "backbone" else "whole"
        own: Any = self._certificate.config
        own = own.get("backbone") if part == "backbone" else own
        same = (
            subject for subject in subjects if (given := subject.config_of(part)) and not config_difference(own, given)
        )
        self.network = next(same, None)

    def cost(self, part: str, height: int, width: int) -> tuple[int | None, int | None]:
        """Return the parameters and the MACs for one image, without those of decoding; None if they are not known."""
        return self.network.cost("whole" if part == "model" else part, height, width) if self.network else (None, None)

    def plan(
        self, forms: Iterable[str], batch: int, shapes: Sequence[tuple[int, int]], device: str, training: bool
    ) -> list[Case]:
        """Return the cases of the file: in its own form, and in those of the given ones that its runtime computes.

        Raises:
            UserError: it does not take such images, or is not measured so.
        """
        if training or device != "cpu":
            raise UserError(f"{self.name} is an exported file, which runs on the CPU and is not trained: omit it")
        count, *size = self.takes
        if count not in (None, batch):
            images = f"{count} image{'s' * (count > 1)}"
            raise UserError(f"{self.name} takes {images} at a time, not {batch}: give --batch {count}")
        usual = SHAPES[self._certificate.task] if None in size else tuple(size)
        for shape in shapes:
            if any(wanted not in (None, side) for wanted, side in zip(size, shape, strict=True)):
                raise UserError(
                    f"{self.name} takes images of {size[0]}×{size[1]} only, not of {shape[0]}×{shape[1]}: give them "
                    "with --shape"
                )
        precisions = [None, *(each for each in PRECISIONS.get(self.form, ()) if each in forms)]
        return [
            Case(
                self.name,
                self.part,
                f"{self.form} {precision}" if precision else self.form,
                batch,
                shape,
                device,
                training=False,
                exported=True,
                precision=precision,
            )
            for shape in shapes or [usual]
            for precision in precisions
        ]


class ExportedStep:
    """A callable that runs an exported file for a case, with as many threads as torch has.

    Raises:
        FileError: the runtime refuses the file.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.file: ExportedFile = open_file(case.subject, torch.get_num_threads(), case.precision)
        self.images = draw_probe(0, (case.batch, 3, *case.shape))
        self._peak = resident_peak(self)  # of the first call, as runtimes keep the memory for the next ones

    def __call__(self) -> None:
        self.file.run(self.images)

    def examine(self) -> Findings:
        """Return what does not vary from call to call.

        The difference is from PyTorch's outputs in the certificate, as the network beside it has other weights.
        """
        probe = self.file.certificate.measured.probe
        difference = None
        if probe is not None:
            outputs = self.file.run(draw_probe(probe["seed"], probe["shape"]))
            difference = max(compare_probe(probe, outputs).values())
        return Findings(self._peak, None, difference)
