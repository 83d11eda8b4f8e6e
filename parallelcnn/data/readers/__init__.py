"""One module for each file format that images come in."""
