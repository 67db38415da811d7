"""Tasks: how a model's performance is measured. One module each; a config in conf/task names it by ``_target_``."""

from tracker.tasks.base import Evaluation, Task

__all__ = ["Evaluation", "Task"]
