"""Model files, archives and fingerprints. Files are written atomically, and checked when they are read."""
