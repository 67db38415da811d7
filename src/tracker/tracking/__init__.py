"""What goes to MLflow: the store, the runs, and the anchors that are logged once."""
