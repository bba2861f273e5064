"""The Transformer, complete and small, in JAX."""
