"""The soak: ranks killed at random moments (scripts/benchmarks/soak.py), shortly; and it notices what is wrong."""

import json
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import launch
import pytest
import soak
import soak_rank
import soak_start
from conftest import BENCHMARKS, ROOT

pytestmark = pytest.mark.slow


@pytest.mark.mpi
def test_nothing_is_lost_when_ranks_are_killed(tmp_path):
    """Also while the others recover, if MPI can continue without a rank."""
    mode = "recoveries" if launch.is_open_mpi() else "ends"
    line = [str(BENCHMARKS / "soak.py"), "--modes", mode, "--trial", "3", "--seed", "7"]
    line += ["--findings", str(tmp_path), "--out", str(tmp_path / "page.md")]
    ran = launch.run([sys.executable, *line], limit=300, PYTHONPATH=str(ROOT))
    errors = "".join(f"{file}\n{file.read_text()[-3000:]}" for file in tmp_path.glob("trial-*/start-*/err"))
    assert ran.code == 0, ran.out + ran.err + errors
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "page.md").read_text().splitlines()]
    counts = {cells[1]: int(cells[-2]) for cells in rows if len(cells) > 3 and cells[-2].isdecimal()}
    assert counts["killed"] > 0
    assert not any(counts[what] for what in soak.WRONG if what != "late ends")


@pytest.mark.parametrize("words", ["--python a b", "--python a --python b"])
def test_the_soak_takes_pythons_together_or_one_by_one(words):
    assert soak._options(words.split()).python == ["a", "b"]


def test_the_soaks_page_tells_how_it_was_called_but_not_where_this_machine_keeps_things(monkeypatch):
    words = "--python .venv-mpich/bin/python /opt/mpi --python=/srv/some/env/bin/python --out=/srv/some/page --kills 9"
    monkeypatch.setattr(sys, "argv", ["/srv/some/scripts/benchmarks/soak.py", *words.split()])
    installation = soak.Installation("python", "MPICH 5")
    options = SimpleNamespace(installations=[installation], at_once=2)
    page = soak.page(options, {mode: Counter(killed=3) for mode in soak.MODES}, 60.0)
    assert page.startswith("# 12 killed ranks\n")
    called = "scripts/benchmarks/soak.py --python .venv-mpich/bin/python opt/mpi --python env/bin/python --kills 9"
    assert page.splitlines()[2].strip() == called


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_of_many_losses_each_rank_dies_once_and_some_are_left(ranks):
    for seed in range(100):
        planned = soak_start.draw_many_losses(random.Random(seed), ranks)
        victims = [rank for one in planned for rank in one.ranks]
        assert 0 < len(set(victims)) == len(victims) < ranks
        assert planned[0].place == "sum"
        assert {one.signal for one in planned} == {int(signal.SIGKILL)}


def test_every_place_of_the_soak_is_in_the_package():
    """Where it is not, PLACES must follow the package: a signal would wait for ever for a place that nobody enters."""
    modules = soak_rank.package_modules()
    missing = [
        place for place, names in soak_rank.PLACES.items() if not any(soak_rank.owners_of(n, modules) for n in names)
    ]
    assert missing == []


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A folder that a training has finished."""
    out = tmp_path_factory.mktemp("trained") / "out"
    line = ["train", "--data", folder, "--epochs", 2, "--reproducible", 2, "--out", out, "--checkpoint-every", 1]
    ran = launch.parallelcnn(*line)
    assert ran.code == 0, ran.err
    return out


@pytest.fixture
def done(trained, tmp_path):
    """(a trial that is done, what was expected of it)"""
    trial = soak.Trial(0, "alone", 0, ["--keep-last", "2"], tmp_path)
    (tmp_path / "tmp").mkdir()
    shutil.copytree(trained, trial.out)
    sha256 = json.loads((trial.out / "summary.json").read_text())["parameters_sha256"]
    newest = max((trial.out / "checkpoints").iterdir())
    return trial, soak.Expected(sha256, soak.pc.load_checkpoint(newest).history.losses, 460)


def test_the_soak_finds_nothing_where_nothing_is_wrong(done):
    trial, expected = done
    soak.check_results(trial, expected)
    assert trial.findings == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a line of metrics.jsonl": lambda out: cut(out / "metrics.jsonl"),
    "a checkpoint": lambda out: cut(min((out / "checkpoints").iterdir())),
    "the last checkpoint": lambda out: max((out / "checkpoints").iterdir()).unlink(),
    "model.npz": lambda out: cut(out / "model.npz"),
    "summary.json": lambda out: (out / "summary.json").unlink(),
    "an unfinished file": lambda out: (out / ".model.npz.x.unfinished").touch(),
    "an unfinished checkpoint": lambda out: (out / "checkpoints" / ".step-000000001.npz.x.unfinished").touch(),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_the_soak_notices(what, done):
    trial, expected = done
    DAMAGES[what](trial.out)
    soak.check_results(trial, expected)
    assert trial.findings


def test_the_soak_notices_other_parameters_and_losses(done):
    trial, expected = done
    soak.check_results(trial, soak.Expected("0" * 64, [loss + 1e-6 for loss in expected.losses], 460))
    assert trial.counts["wrong sums"] >= 4
