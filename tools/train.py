"""Train a detector or segmentor: ``python tools/train.py CONFIG``, with MMDetection's options."""

from mmcare.cli import run
from mmcare.cli.commands import train

if __name__ == "__main__":
    run(train.main)
