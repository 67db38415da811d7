"""Anchors of several kinds that no codec was tuned for, added as a user adds them: see README.md."""
