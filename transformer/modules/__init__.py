"""Models in Flax NNX: parameters and the functions that use them."""
