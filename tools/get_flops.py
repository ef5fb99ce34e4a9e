"""Count parameters and multiply-accumulates: ``python tools/get_flops.py CONFIG|BACKBONE [--shape H W]``."""

from mmcare.cli import run
from mmcare.cli.commands import get_flops

if __name__ == "__main__":
    run(get_flops.main)
