"""Parameters + equations, in Flax NNX."""
