"""What scripts/fuzz.py feeds, and watches: the readers of files and of the command line."""
