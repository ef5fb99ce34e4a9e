"""Draw what a network looks at: ``python tools/visualize.py IMAGE --model FILE --point X Y``."""

from mmcare.cli import run
from mmcare.cli.commands import visualize

if __name__ == "__main__":
    run(visualize.main)
