"""Show the training images of a config: ``python tools/browse_dataset.py CONFIG``, with MMDetection's options."""

from mmcare.cli import run
from mmcare.cli.commands import browse_dataset

if __name__ == "__main__":
    run(browse_dataset.main)
