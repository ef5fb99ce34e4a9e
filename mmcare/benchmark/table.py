"""The results of a run as rows: CSV files, text tables, and comparisons within a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tabulate import tabulate

from ..errors import UserError
from ..files import write_file


@dataclass(frozen=True)
class Row:
    """The measurements of one subject in one form at one size. Times are in seconds, memory in bytes.

    Attributes:
        run: name of the run; only rows of the same run may be compared.
        machine: processor, threads and versions.
        subject, form: what was measured.
        part: whole or backbone; of an exported file also model, the whole with its decoding.
        mode: inference or training.
        batch, height, width: size of the images, before padding.
        parameters: number of parameters of the part; None of an exported file if no subject has its network.
        macs: multiply-accumulates of the part's forward pass for one image; None as above.
        repeats: number of timed calls.
        median, p10, p90: median and percentiles of the time for a batch.
        peak: peak memory without weights and images; of an exported file, by how much its process grows.
        kept: memory that the forward pass stores for the backward pass; None in inference.
        ceiling: operations per second of a large float32 matrix product in the same run, two for each MAC.
        difference: the largest relative difference of a map from the plain form's, or from the first form's if there
            is no plain form; None for that form itself. Of an exported file, the largest error from PyTorch's outputs
            in its certificate.
        network: of an exported file, the subject with the same network.
    """

    run: str
    machine: str
    subject: str
    part: str
    form: str
    mode: str
    batch: int
    height: int
    width: int
    parameters: int | None
    macs: int | None
    repeats: int
    median: float
    p10: float
    p90: float
    peak: int
    kept: int | None
    ceiling: float
    difference: float | None
    network: str | None = None

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.batch / self.median

    @property
    def share(self) -> float | None:
        """The part's operations per second, as a share of the ceiling.

        A training step counts as three forward passes: the backward pass has one product for the gradient of the map
        and one for that of the weights. Recomputation does not count. None if the operations are not known.
        """
        if self.macs is None:
            return None
        passes = 3 if self.mode == "training" else 1
        return 2 * self.macs * passes * self.batch / self.median / self.ceiling

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width

    @property
    def setting(self) -> tuple[object, ...]:
        """The attributes, besides the run, that two rows must share to be comparable."""
        return (self.part, self.mode, self.batch, self.height, self.width)

    def __str__(self) -> str:
        return f"{self.subject} ({self.form}, {self.part}, {self.mode}) at {self.height}×{self.width}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write a CSV file atomically, and never over another file.

    Raises:
        UserError: the file exists or cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    if path.exists():
        raise UserError(f"{path} exists: move it away, or give another name")
    write_file(path, text.getvalue().encode())


def read_csv(path: Path) -> list[Row]:
    """Read the rows of a CSV file.

    Raises:
        UserError: the file cannot be read, or was not written by :func:`write_csv`.
    """
    convert = {"int": int, "float": float, "str": str}
    kinds = {field.name: str(field.type).split(" | ") for field in fields(Row)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            records = list(csv.DictReader(file))
        rows = [
            Row(
                **{
                    name: None if "None" in kind and not record[name] else convert[kind[0]](record[name])
                    for name, kind in kinds.items()
                    if name in record or name != "network"  # which earlier releases did not write
                }
            )
            for record in records
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} was not written by the benchmark: {error}") from error
    if not rows:
        raise UserError(f"{path} has no measurements: give another file")
    return rows


def speedups(rows: Sequence[Row], baseline: tuple[str, str] | None = None) -> list[float | None]:
    """Return the speed of each row relative to its baseline, as a ratio of the medians.

    Args:
        rows: rows of one or more runs.
        baseline: subject and form to compare with; None for the plain form of the same network. A model with its
            decoding is compared with a whole without if that is what was measured.

    Returns:
        A ratio for each row; None if the baseline was not measured in that setting.

    Raises:
        UserError: the baseline was measured in another run than the row, or not at all.
    """
    ratios: list[float | None] = []
    for row in rows:
        subject, form = baseline or (row.network or row.subject, "plain")
        of_form = [other for other in rows if (other.subject, other.form) == (subject, form)]
        found = [other for other in of_form if other.setting == row.setting]
        if not found and row.part == "model":
            found = [other for other in of_form if other.setting == ("whole", *row.setting[1:])]
        same_run = [other for other in found if other.run == row.run]
        if found and not same_run:
            raise UserError(
                f"{row} was measured in the run {row.run} and {found[0]} in the run {found[0].run}, and times of "
                "different runs are not comparable: measure both in one run"
            )
        ratios.append(same_run[0].median / row.median if same_run else None)
    if baseline and not any(ratios):
        raise UserError(
            f"the baseline {' in the form '.join(baseline)} was not measured: "
            f"choose from {', '.join(dict.fromkeys(f'{row.subject} {row.form}' for row in rows))}"
        )
    return ratios


def only_run(rows: Sequence[Row], purpose: str) -> None:
    """Raise UserError if the rows are from more than one run."""
    runs = list(dict.fromkeys(row.run for row in rows))
    if len(runs) > 1:
        raise UserError(
            f"{purpose} compares rows of one run, but these are from the runs {', '.join(runs)}: give the file of one"
        )


_LEFT = ("subject", "part", "form")
_FIGURES = ("params", "GMACs", "median", "p10", "p90", "img/s", "peak", "kept", "ceiling", "diff.", "speed")


def text_table(rows: Sequence[Row], baseline: tuple[str, str] | None = None) -> str:
    """Return the rows as text tables, one for each run and setting, with the ratios of :func:`speedups`."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row, ratio in zip(rows, speedups(rows, baseline), strict=True):
        title = f"{row.mode}, batch {row.batch}, {row.height}×{row.width}; run {row.run} on {row.machine}"
        groups.setdefault(title, []).append(_cells(row, ratio))
    align = ("left",) * len(_LEFT) + ("right",) * len(_FIGURES)
    against = "the plain form of the same network" if baseline is None else " ".join(baseline)
    tables = [
        f"{title}\n{tabulate(cells, (*_LEFT, *_FIGURES), disable_numparse=True, colalign=align)}"
        for title, cells in groups.items()
    ]
    notes = [f"speed: relative to {against}; ceiling: share of the speed of a large float32 matrix product."]
    if any(row.part == "model" for row in rows):
        notes.append(
            "part model: with its decoding, which the operations and the whole in PyTorch beside it do not have."
        )
    return "\n\n".join((*tables, "\n".join(notes)))


def _cells(row: Row, ratio: float | None) -> tuple[str, ...]:
    return (
        row.subject,
        row.part,
        row.form,
        "" if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
        "" if row.macs is None else f"{row.macs / 1e9:.2f}",
        *(f"{seconds * 1e3:.1f} ms" for seconds in (row.median, row.p10, row.p90)),
        f"{row.throughput:.2f}",
        f"{row.peak / 2**20:.1f} MiB",
        "" if row.kept is None else f"{row.kept / 2**20:.1f} MiB",
        "" if row.share is None else f"{row.share:.0%}",
        "" if row.difference is None else f"{row.difference:.0e}",
        "" if ratio is None else f"{ratio:.2f}×",
    )
