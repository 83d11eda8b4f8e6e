"""The command `parallelcnn`, one module for each sub-command. The only package that prints errors and exits."""

from parallelcnn.cli.command import main as main
