"""Synchronous data-parallel training: training steps, evaluation, checkpoints and callbacks."""
