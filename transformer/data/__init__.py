"""The host's side: text to tokens to batches, in NumPy."""
