"""MLflow-integrated experiment tracker for neural-network compression.

Nothing heavy is imported here: ``python -m tracker --help`` answers before torch or MLflow is loaded.
"""

__version__ = "0.1.0"
