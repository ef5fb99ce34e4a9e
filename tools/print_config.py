"""Print a complete config: ``python tools/print_config.py CONFIG``, with MMDetection's options."""

from mmcare.cli import run
from mmcare.cli.commands import print_config

if __name__ == "__main__":
    run(print_config.main)
