"""What protects a training: signals, the watchdog, the comparison of replicas."""
