"""The known models."""
