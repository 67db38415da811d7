"""What MLflow's pages show of a store: saved views, descriptions, and ``python -m tracker.ui``, which opens them."""
