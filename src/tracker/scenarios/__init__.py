"""Scenarios: what a run does. One module each; a config in conf/scenario names its function by ``_target_``."""

from tracker.scenarios.job import Job

__all__ = ["Job"]
