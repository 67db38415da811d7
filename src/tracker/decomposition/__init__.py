"""What spatial and weight SVD and channel pruning share: options, scores, plots; and the SVD of Keras models."""
