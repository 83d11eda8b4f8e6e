"""The command `parallelcnn`. The only package that prints errors and exits."""

from parallelcnn.cli.command import main as main
