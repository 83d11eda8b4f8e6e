"""The benchmarks: what they compute is true, and each runs through with its smallest settings."""

import subprocess
import sys

import compare
import networks
import pytest
from conftest import BENCHMARKS, ROOT
from pages import Spread, positive_number, write_page
from processes import Contestant, ProgramFailed

import parallelcnn as pc


def test_the_papers_network_costs_0_98_megaflop_a_sample():
    products = 54 * 26 * 26 + 864 * 11 * 11 + 400 * 84 + 84 * 10
    assert networks.flop_per_sample(pc.paper(), (1, 28, 28)) == 2 * (3 * products - 54 * 26 * 26)


def test_a_spread_shows_median_lowest_and_highest():
    assert Spread.of([2.0, 1.9, 2.2]).text(unit="x") == "2.00x (1.90 to 2.20)"


class Fake:
    """Takes so many seconds per sample in each of its turns."""

    def __init__(self, name, rates, log):
        self._name, self._rates, self._log = name, iter(rates), log

    def turn(self, samples, epochs):
        self._log.append(self._name)
        return next(self._rates) * samples * epochs


def test_in_a_round_turns_alternate_and_the_fastest_counts_without_the_first(monkeypatch):
    monkeypatch.setattr(compare, "SETTLE", 0)
    log = []
    now, before = (compare.System(name, "parallelcnn") for name in ("now", "before"))
    contestants = {now: Fake("now", [1, 5, 3], log), before: Fake("before", [9, 6, 7], log)}
    times = compare.one_round(contestants, dict.fromkeys(contestants, (10, 2)), 2, 1)
    assert times == {now: 3, before: 6}
    assert log == ["now", "before", "before", "now", "now", "before"]


def test_a_turn_is_as_long_as_wished_in_whole_minibatches():
    samples, epochs = compare.amount(Fake("", [9, 1e-3], []), compare.Workload("paper", 30), 10.0)
    assert samples % 30 == 0
    assert samples <= 4000
    assert 10_000 <= samples * epochs < 10_000 + 30 * epochs


def test_a_contestant_that_ends_is_an_error_with_its_last_words(tmp_path):
    with pytest.raises(ProgramFailed, match="exit code 3\nthe reason"):
        Contestant([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], tmp_path)


def test_a_page_that_cannot_be_written_is_told_in_a_sentence_and_the_earlier_one_stays(tmp_path):
    (tmp_path / "page.md").write_text("earlier\n")
    line = "from pages import write_page as write; from pathlib import Path; write(Path('page.md'), 'x' * 9000)"
    command = f"ulimit -f 4; trap '' XFSZ; {sys.executable} -c \"{line}\""
    variables = {"PYTHONPATH": str(BENCHMARKS), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "-c: page.md could not be written: File too large\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.md", "earlier\n")]


def test_pages_are_written_and_numbers_checked(tmp_path):
    write_page(tmp_path / "page.md", "new\n")
    assert (tmp_path / "page.md").read_text() == "new\n"
    with pytest.raises(Exception, match="must be a number above 0, got 'nan'"):
        positive_number("nan")


def test_this_checkout_is_timed_beside_another_in_one_run(tmp_path):
    """The other is this one, too; the start-up that is timed is that of --help."""
    page = tmp_path / "page.md"
    line = f"--against {ROOT} --only help --rounds 1 --out {page}".split()
    done = subprocess.run([sys.executable, BENCHMARKS / "compare.py", *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in page.read_text().splitlines() if line.startswith("| --help"))
    assert " s (" in row
    assert "--against FOLDER --only help" in page.read_text()
    assert str(tmp_path) not in page.read_text()
