"""Synchronous data-parallel training: the step, and what happens between steps."""
