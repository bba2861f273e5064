"""Data sets made of others, by hand and before a run."""
