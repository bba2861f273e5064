"""Applying a trained model: batches of requests, decoding settings, generation."""
