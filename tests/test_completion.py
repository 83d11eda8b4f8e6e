"""Completion of the command line, through the variables of the environment by which a shell asks argcomplete for it."""

import sys

import pytest
from conftest import ROOT
from launch import run

from parallelcnn.data.loading import DATA_NAMES
from parallelcnn.models import MODELS
from parallelcnn.training.augmentation import NAMES
from parallelcnn.training.config import settings

WITHOUT_HEAVY_IMPORTS = """
import os, sys
from parallelcnn.__main__ import main

def end(code):
    assert not {"numpy", "numba", "mpi4py"} & set(sys.modules)
    sys.exit(code)

os._exit = end  # argcomplete ends the process with it
main()
"""


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("parallelcnn tr", ["train"]),
        ("parallelcnn ", ["train", "evaluate", "info", "doctor", "guide"]),
        ("parallelcnn train --opt", ["--optimizer"]),
        ("parallelcnn train --optimizer ad", ["adam", "adamw"]),
        ("parallelcnn train --schedule=co", ["--schedule=constant", "--schedule=cosine"]),
        ("parallelcnn train --model resn", ["resnet8", "resnet20"]),
        (f"parallelcnn train --data {ROOT}/tests/mp", [f"{ROOT}/tests/mpi/"]),
        ("parallelcnn train --augment light mix", ["mixup"]),
        ("parallelcnn guide scikit", ["scikit-learn"]),
        ("parallelcnn nothing --", []),
    ],
)
def test_a_shell_gets_the_commands_options_and_their_values(line, wanted, tmp_path):
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    file = tmp_path / "completions"
    ran = run([sys.executable, "-c", WITHOUT_HEAVY_IMPORTS], **asked, _ARGCOMPLETE_STDOUT_FILENAME=str(file))
    assert "Error" not in ran.err, ran.err
    assert ran.out == ""
    found = {one.strip() for one in file.read_text().splitlines()}
    assert set(wanted) <= found
    assert wanted == [] or line.endswith(" ") or found == set(wanted)


def test_the_values_that_a_shell_completes_are_those_that_exist():
    known = {one.name: setting.known for one, setting in settings()}
    assert known["model"] == ("auto", *MODELS)
    assert known["data"] == DATA_NAMES
    assert known["augment"] == NAMES


def test_without_argcomplete_the_shell_gets_nothing_and_no_command_runs():
    script = "import sys; sys.modules['argcomplete'] = None; from parallelcnn.__main__ import main; sys.exit(main())"
    ran = run([sys.executable, "-c", script, "train"], _ARGCOMPLETE="1", COMP_LINE="parallelcnn tr", COMP_POINT="14")
    assert (ran.code, ran.out, ran.err) == (1, "", "")


def test_argcomplete_finds_its_marker_at_the_beginning_of_the_main_module():
    assert "PYTHON_ARGCOMPLETE_OK" in (ROOT / "parallelcnn" / "__main__.py").read_text()[:1024]
