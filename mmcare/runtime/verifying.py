"""The replay of a certificate: what was certified beside what holds here and now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .certificate import Certificate, Latency
from .errors import FileError
from .opening import ExportedFile, open_file
from .probe import compare_probe, draw_probe, read_probe

_CALLS, _SECONDS = 20, 5.0
"""The most calls, and about the longest time, for a latency."""


@dataclass(frozen=True)
class Check:
    """A row of a verification.

    Attributes:
        what: what was looked at.
        certified: what the certificate says.
        now: what was found.
        holds: whether they agree; None if they need not, or cannot be compared here.
    """

    what: str
    certified: str
    now: str
    holds: bool | None


def verify(path: str | Path, threads: int | None = None) -> list[Check]:
    """Compare an exported file with its certificate, and run it on the certificate's probe.

    Args:
        path: the file.
        threads: number of threads; by default the certificate's.

    Returns:
        The checks, also those that failed.

    Raises:
        FileError: the file cannot be opened: see :func:`mmcare.runtime.open_file`.
    """
    path = Path(path)
    file = open_file(path, threads)
    certificate, latency = file.certificate, file.certificate.measured.latency
    if threads is None and latency is not None:  # to be measured as it was
        file = open_file(path, latency.threads)
    hashes = ", ".join(value[:12] for value in certificate.sha256.values())
    checks = [Check("format", certificate.format, path.suffix.lower(), True), Check("sha256", hashes, hashes, True)]
    checks.append(_operators(file))
    checks += _probe(file)
    checks += _latency(file, latency, threads)
    checks += _metric(certificate)
    return checks


def show(checks: Sequence[Check]) -> str:
    """Return a table of checks."""
    marks = {True: "ok", False: "WRONG", None: ""}
    rows = [("", "certified", "now", ""), *((c.what, c.certified, c.now, marks[c.holds]) for c in checks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def require(path: str | Path, checks: Sequence[Check]) -> None:
    """Raise FileError if a check failed."""
    wrong = [check.what for check in checks if check.holds is False]
    if wrong:
        raise FileError(f"{path} is not what its certificate says: see {' and '.join(wrong)}; export the model again")


def _operators(file: ExportedFile) -> Check:
    wanted, found = file.certificate.operators, file.contents.operators
    certified = f"{sum(wanted.values())} of {len(wanted)} kinds"
    if found is None:
        return Check("operators", certified, "are not read in this format", None)
    different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    now = f"{sum(found.values())} of {len(found)} kinds"
    if different:
        now += f", {len(different)} other: {', '.join(different)[:60]}"
    return Check("operators", certified, now, not different)


def _probe(file: ExportedFile) -> list[Check]:
    content = file.certificate.measured.probe
    if content is None:
        return [Check("outputs", "", "there is no probe", None)]
    try:
        probe = read_probe(content)
    except ValueError as error:
        raise FileError(f"the certificate of {file.path} cannot be used, as {error}: export the model again") from None
    outputs = file.run(draw_probe(probe.seed, probe.shape))
    try:
        errors = compare_probe(content, outputs)
    except ValueError as error:
        raise FileError(f"{file.path} returns something else than was certified: {error}") from None
    checks = []
    for name, error in errors.items():
        certified = file.certificate.measured.errors.get(name)
        shown = "" if certified is None else f"{certified.largest:.1e}, at most {certified.tolerance:.1e}"
        holds = None if certified is None else error <= certified.tolerance
        checks.append(Check(f"error of {name}", shown, f"{error:.1e}", holds))
    return checks


def _latency(file: ExportedFile, latency: Latency | None, threads: int | None) -> list[Check]:
    if latency is None:
        return []
    images = draw_probe(0, latency.shape)
    file.run(images)
    times: list[float] = []
    while len(times) < _CALLS and sum(times) < _SECONDS:
        start = time.perf_counter()
        file.run(images)
        times.append(time.perf_counter() - start)
    what = f"latency, {'×'.join(map(str, latency.shape))}"
    certified = f"{latency.file_ms:.1f} ms, PyTorch {latency.pytorch_ms:.1f} ms, {_threads(latency.threads)}"
    now = f"{1000 * statistics.median(times):.1f} ms, {_threads(threads or latency.threads)}"
    return [Check(what, certified, now, None)]


def _metric(certificate: Certificate) -> list[Check]:
    metric = certificate.measured.metric
    if metric is None:
        return []
    data = f"{metric.images} pictures of {metric.data}"
    certified = f"{metric.file:.3f}, PyTorch {metric.pytorch:.3f}, {data}"
    return [Check(metric.name, certified, "needs the data: mmcare test", None)]


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number != 1)}"
