"""Write a trained model as a file for another runtime: ``python tools/export.py CONFIG CHECKPOINT``."""

from mmcare.cli import run
from mmcare.cli.commands import export

if __name__ == "__main__":
    run(export.main)
