import pytest

from mmcare.benchmark.cases import plan
from mmcare.benchmark.steps import Step
from mmcare.benchmark.table import Row


@pytest.fixture(scope="session")
def make_row():
    """Make a row with CARE s1's figures, some of them replaced."""

    def make_row(**changes):
        settings = dict(subject="mmcare.CARE:s1", part="backbone", form="plain", mode="inference", batch=1, height=512)
        counts = dict(width=512, parameters=7_548_328, macs=5_000_000_000, repeats=5, peak=2**20, kept=None)
        times = dict(median=0.1, p10=0.09, p90=0.12, ceiling=2e11, difference=None)
        return Row(**{**dict(run="one", machine="a machine"), **settings, **counts, **times, **changes})

    return make_row


@pytest.fixture(scope="session")
def make_steps():
    """Make the steps of a run for a subject, in this process."""

    def make_steps(subject, forms, shape=(32, 32), batch=1, training=False):
        return [Step(case, subject) for case in plan([subject], forms, batch, [shape], "cpu", training)]

    return make_steps
