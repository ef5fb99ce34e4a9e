"""Measure models side by side: ``python tools/benchmark.py CONFIG|BACKBONE|PEER … [--forms FORM …]``."""

from mmcare.cli import run
from mmcare.cli.commands import benchmark

if __name__ == "__main__":
    run(benchmark.main)
