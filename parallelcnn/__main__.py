# PYTHON_ARGCOMPLETE_OK
"""`python -m parallelcnn` is the command `parallelcnn`."""

import sys

from parallelcnn.resilience.signals import let_interrupts_end_the_process

let_interrupts_end_the_process()  # before the rest is imported: Python may lose a KeyboardInterrupt in an import

from parallelcnn.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
