"""Reports: the field's table of a tracking store, and the curves of rate and performance."""
