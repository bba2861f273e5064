"""What was measured, one JSON file a run; `python -m experiments.results table` writes it up."""
