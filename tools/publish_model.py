"""Publish a checkpoint without its training state: ``python tools/publish_model.py IN OUT``."""

from mmcare.cli import run
from mmcare.cli.commands import publish_model

if __name__ == "__main__":
    run(publish_model.main)
