"""Extensions of MMEngine's Runner for training and testing.

Importing this package is cheap: torch and MMEngine are imported when a function is called.
"""

from .comparing import config_difference, plain_config
from .config_faults import explain_config_faults
from .configs import DENSE_TASKS, dense_task_of, get_config, is_config, list_configs, load_config, task_of
from .curves import Curves, draw_curves, read_curves, summarize
from .evaluating import Evaluation
from .launchers import LAUNCHERS, is_first_process
from .preflight import check_inputs, missing_inputs
from .recipes import RECIPES, apply_recipe, check_start
from .runner import build_dataset, build_runner, check_checkpoint
from .tracking import TRACKERS, track

__all__ = [
    "Curves",
    "DENSE_TASKS",
    "Evaluation",
    "LAUNCHERS",
    "RECIPES",
    "TRACKERS",
    "apply_recipe",
    "build_dataset",
    "build_runner",
    "check_checkpoint",
    "check_inputs",
    "check_start",
    "config_difference",
    "dense_task_of",
    "draw_curves",
    "explain_config_faults",
    "get_config",
    "is_config",
    "is_first_process",
    "list_configs",
    "load_config",
    "missing_inputs",
    "plain_config",
    "read_curves",
    "summarize",
    "task_of",
    "track",
]
