"""What the README says is true: its Python runs, its files exist, its options are those of the command."""

import re
import subprocess
import sys

from conftest import ROOT
from launch import parallelcnn

README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks))
    ran = subprocess.run(
        [sys.executable, "-W", "error", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "Evaluation(loss=" in ran.stdout
    assert "GradientCheck(largest_difference=" in ran.stdout
    assert (tmp_path / "model.npz").exists()


def test_every_file_that_the_readme_names_exists():
    names = set(re.findall(r"`([\w./]+\.(?:py|sh|sbatch))`", README))
    names |= set(re.findall(r"\]\(([^):]+)\)", README))
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "parallelcnn" / name).exists(), name


def test_every_option_that_the_readme_names_is_one_of_the_command():
    known = "".join(parallelcnn(command, "--help").out for command in ("train", "evaluate", "doctor"))
    foreign = {"--nodes", "--ntasks-per-node", "--mpi"}  # of srun
    foreign |= {"--allow-run-as-root", "--oversubscribe", "--with-ft", "--bind-to", "--map-by"}  # of mpirun
    foreign |= {"--time", "--signal", "--batch", "--no-requeue"}  # of SLURM's commands
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - foreign
    assert len(options) >= 9
    for option in options:
        assert option in known, option
