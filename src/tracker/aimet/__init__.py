"""What stages on AIMET (aimet-torch, https://github.com/quic/aimet) do: one module a stage, and what they share.

AIMET is the sender's alone: nothing that the receiver runs imports this package.
"""

from tracker.aimet.base import LOG, Positional, Prepared, check_installed, load, loggers, packer, prepared, session

__all__ = ["LOG", "Positional", "Prepared", "check_installed", "load", "loggers", "packer", "prepared", "session"]
