"""Fault tolerance, watchdog, signals, replica check, launcher checks: what protects a training."""
