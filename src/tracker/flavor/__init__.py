"""MLflow's flavor ``nnc``: a model that is stored as its bitstream and its public architecture, not as float weights.

    import mlflow
    import tracker.flavor

    model = tracker.flavor.load_model("models:/resnet20@transparent")         # a torch.nn.Module or a keras.Model
    served = mlflow.pyfunc.load_model("models:/resnet20@transparent")         # arrays in, arrays out

The receiver needs tracker, the framework and the coder; none of the sender's tools (AIMET, Optuna). See
https://mlflow.org/docs/latest/ml/model for what a flavor is.
"""

from tracker.flavor.model import (
    FLAVOR_NAME,
    _load_pyfunc,
    get_default_pip_requirements,
    load_model,
    log_model,
    save_model,
)

__all__ = ["FLAVOR_NAME", "_load_pyfunc", "get_default_pip_requirements", "load_model", "log_model", "save_model"]
