"""Experiments: each file has the config of a run, and its result in the docstring."""
