"""Fault tolerance, watchdog, graceful shutdown, replica check and launcher checks."""
