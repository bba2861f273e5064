"""Optimisers, sharding, checkpoints, the step and the loop."""
