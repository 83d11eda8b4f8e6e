"""Reports of runs as HTML pages: self-contained files without scripts, for the screen, the phone and the printer."""
