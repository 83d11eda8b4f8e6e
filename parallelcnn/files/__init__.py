"""Files that a training leaves behind: written whole or not at all, read with suspicion."""
