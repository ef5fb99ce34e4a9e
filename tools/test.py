"""Test a detector or segmentor: ``python tools/test.py CONFIG CHECKPOINT``, with MMDetection's options."""

from mmcare.cli import run
from mmcare.cli.commands import test

if __name__ == "__main__":
    run(test.main)
