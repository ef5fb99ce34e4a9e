"""A run's results as rows: written to a CSV file, read from it, printed, and compared where that is fair."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..errors import UserError
from ..files import whole_file


@dataclass(frozen=True)
class Row:
    """What was measured of one subject in one form at one size. Times are in seconds, memory in bytes.

    Attributes:
        run: names the run; only rows of the same run may be compared.
        machine: processor, threads and versions.
        subject, part, form, mode: what was measured; ``part`` is whole or backbone, ``mode`` inference or training.
        batch, height, width: of the images, before padding.
        parameters: of the part.
        macs: multiply-accumulates of the part's forward pass for one image.
        repeats: how often it was timed.
        median, p10, p90: of the time for a batch.
        peak: memory allocated at the same time, without weights and images.
        kept: in training, what the forward pass keeps for the backward pass.
        ceiling: operations a second of a large float32 matrix product in the same run, two for each MAC.
        difference: the largest relative difference of a map to the plain form's, or without it the first form's.
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
    parameters: int
    macs: int
    repeats: int
    median: float
    p10: float
    p90: float
    peak: int
    kept: int | None
    ceiling: float
    difference: float | None

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.batch / self.median

    @property
    def share(self) -> float:
        """The part's operations a second, as a share of the ceiling.

        A training step counts three times the forward pass: the backward pass has a product for the gradient of the
        map and one for the gradient of the weights. What is computed a second time to save memory does not count.
        """
        passes = 3 if self.mode == "training" else 1
        return 2 * self.macs * passes * self.batch / self.median / self.ceiling

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def setting(self) -> tuple[object, ...]:
        """What two rows must have in common, besides the run, for a ratio of their times to mean something."""
        return (self.part, self.mode, self.batch, self.height, self.width)

    def __str__(self) -> str:
        return f"{self.subject} ({self.form}, {self.part}, {self.mode}) at {self.height}×{self.width}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the file as a whole or not at all, and never over another.

    Raises:
        UserError: there is a file of that name, or it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    if path.exists():
        raise UserError(f"{path} exists: move it away, or give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_csv(path: Path) -> list[Row]:
    """The rows of a run's file.

    Raises:
        UserError: it is not there, or not such a file.
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
                }
            )
            for record in records
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is not a file that tools/benchmark.py has written: {error}") from error
    if not rows:
        raise UserError(f"{path} has no measurement in it: give another file")
    return rows


def speedups(rows: Sequence[Row], baseline: tuple[str, str] | None = None) -> list[float | None]:
    """How many times faster than its baseline each row is, by the medians.

    Args:
        rows: of one run or of several.
        baseline: subject and form to compare with; None for the plain form of the same network.

    Returns:
        A ratio for each row, None where the baseline was not measured in that setting.

    Raises:
        UserError: the baseline was measured in another run than the row, or nowhere.
    """
    ratios: list[float | None] = []
    for row in rows:
        subject, form = baseline or (row.subject, "plain")
        found = [other for other in rows if (other.subject, other.form, other.setting) == (subject, form, row.setting)]
        same_run = [other for other in found if other.run == row.run]
        if found and not same_run:
            raise UserError(
                f"{row} was measured in the run {row.run} and {found[0]} in the run {found[0].run}, and a ratio of two "
                "runs is not printed: measure both in one run"
            )
        ratios.append(same_run[0].median / row.median if same_run else None)
    if baseline and not any(ratios):
        raise UserError(
            f"the baseline {' in the form '.join(baseline)} is not among what was measured: "
            f"choose from {', '.join(dict.fromkeys(f'{row.subject} {row.form}' for row in rows))}"
        )
    return ratios


def only_run(rows: Sequence[Row], purpose: str) -> None:
    """Raises a UserError if the rows are of more than one run."""
    runs = list(dict.fromkeys(row.run for row in rows))
    if len(runs) > 1:
        raise UserError(
            f"{purpose} compares its points, and these are of the runs {', '.join(runs)}: give the file of one run"
        )


def text_table(rows: Sequence[Row], baseline: tuple[str, str] | None = None) -> str:
    """The rows as a table to read, with :func:`speedups`'s ratios; a line before each run's says what ran it."""
    header = ("subject", "part", "form", "params", "GMACs", "median", "p10", "p90", "img/s", "peak", "kept", "ceiling")
    header = (*header, "diff.", "speed")
    lines = []
    cells = [header]
    ratios = dict(zip(map(id, rows), speedups(rows, baseline), strict=True))
    rows = sorted(rows, key=_group)  # stable: subjects stay in their order
    for row in rows:
        ratio = ratios[id(row)]
        cells.append(
            (
                row.subject,
                row.part,
                row.form,
                f"{row.parameters / 1e6:.2f} M",
                f"{row.macs / 1e9:.2f}",
                *(f"{seconds * 1e3:.1f} ms" for seconds in (row.median, row.p10, row.p90)),
                f"{row.throughput:.2f}",
                f"{row.peak / 2**20:.1f} MiB",
                "" if row.kept is None else f"{row.kept / 2**20:.1f} MiB",
                f"{row.share:.0%}",
                "" if row.difference is None else f"{row.difference:.0e}",
                "" if ratio is None else f"{ratio:.2f}×",
            )
        )
    aligned = align(cells, left=3)
    before = None
    for row, line in zip(rows, aligned[1:], strict=True):
        if (group := _group(row)) != before:
            run, machine, mode, batch, height, width = group
            lines += ["", f"{mode}, batch {batch}, {height}×{width}; run {run} on {machine}", aligned[0]]
            before = group
        lines.append(line)
    against = "the plain form of the same network" if baseline is None else " ".join(baseline)
    lines += ["", f"speed: times as fast as {against}; ceiling: share of the speed of a large float32 matrix product."]
    return "\n".join(lines[1:])


def _group(row: Row) -> tuple[str, str, str, int, int, int]:
    """What the line before a part of the table says."""
    return (row.run, row.machine, row.mode, row.batch, row.height, row.width)


def align(cells: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table with columns as wide as their widest cell, the first ``left`` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in cells
    ]
