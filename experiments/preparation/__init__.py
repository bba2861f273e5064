"""Scripts that make data sets of others, to be called before a run."""
