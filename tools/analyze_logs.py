"""Plot the curves of a training: ``python tools/analyze_logs.py WORK_DIR``."""

from mmcare.cli import run
from mmcare.cli.commands import analyze_logs

if __name__ == "__main__":
    run(analyze_logs.main)
