"""Predict pictures, videos and folders: ``python tools/predict.py SOURCE … --model FILE``."""

from mmcare.cli import run
from mmcare.cli.commands import predict

if __name__ == "__main__":
    run(predict.main)
