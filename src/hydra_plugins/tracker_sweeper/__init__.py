"""The Hydra plugin: Optuna's search for the smallest transparent bitstream, as a sweeper."""
