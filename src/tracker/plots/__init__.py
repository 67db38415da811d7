"""Plots of a run, as PNG: MLflow's artifact view shows them as they are, in its light and its dark theme."""
