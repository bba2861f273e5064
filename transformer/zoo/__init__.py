"""Known models: presets, and reading and writing of published weights."""
