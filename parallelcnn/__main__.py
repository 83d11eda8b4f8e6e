"""`python -m parallelcnn` is the command `parallelcnn`."""

import sys

from parallelcnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
