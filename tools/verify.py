"""Compare an exported file with its certificate: ``python tools/verify.py FILE``."""

from mmcare.cli import run
from mmcare.cli.commands import verify

if __name__ == "__main__":
    run(verify.main)
