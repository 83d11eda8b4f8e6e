"""Model files, archives and fingerprints: files are written atomically, and checked when they are read."""
