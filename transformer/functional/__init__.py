"""Pure functions on arrays: jax only, no parameters, no state."""
