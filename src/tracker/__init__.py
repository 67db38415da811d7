"""MLflow-integrated experiment tracker for neural-network compression.

Nothing heavy is imported here: ``python -m tracker --help`` answers before torch or MLflow is loaded.
"""

from tracker import imports

__version__ = "0.1.0"

imports.install()
