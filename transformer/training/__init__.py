"""Training: configs, optimizers, sharding, checkpoints, the step, the loop and the command line."""
