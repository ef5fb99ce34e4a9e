"""What training and testing add to MMEngine's Runner.

Importing this costs nothing: whatever needs torch or MMEngine is imported when a function is called.
"""

from .configs import TASKS, load_config, task_of
from .launchers import LAUNCHERS
from .preflight import check_inputs
from .runner import build_runner, check_checkpoint

__all__ = ["LAUNCHERS", "TASKS", "build_runner", "check_checkpoint", "check_inputs", "load_config", "task_of"]
