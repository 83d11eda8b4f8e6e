"""README and guide: their Python runs, their command lines parse, files and names exist; and `parallelcnn guide`."""

import json
import re
import shlex
import sys
import types
from argparse import ArgumentParser, _SubParsersAction
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from launch import run

import parallelcnn as pc
from parallelcnn.cli import main
from parallelcnn.cli.command import _parsers
from parallelcnn.training.config import settings

README = ROOT / "README.md"
GUIDE = ROOT / "parallelcnn" / "guide"
PAGES = [README, *sorted(GUIDE.glob("*.md"))]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")

MPIRUN_OPTIONS = {"-n", "--allow-run-as-root", "--bind-to", "--map-by", "--oversubscribe", "--with-ft"}
MPIRUN_OPTIONS |= {"-hosts", "-ppn", "--host"}  # the first two are MPICH's
SLURM_OPTIONS = {"-n", "--account", "--batch", "--mem", "--mpi", "--no-requeue", "--nodes", "--ntasks-per-node"}
SLURM_OPTIONS |= {"--cpus-per-task", "--partition", "--signal", "--time"}
OTHER_PROGRAMS = {"export", "pip", "python", "scancel"}


def text_outside_code(page):
    """The page's text with every line of a fenced block emptied."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page.read_text(), flags=re.M | re.S)


def code_of(page, language):
    """(line number, content) of each fenced block of a language."""
    text = page.read_text()
    for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S):
        yield text[: block.start(1)].count("\n") + 1, block[1]


def subcommands(parser):
    (action,) = (action for action in parser._actions if isinstance(action, _SubParsersAction))
    return action.choices


def options_of(parser: ArgumentParser):
    return {option for action in parser._actions for option in action.option_strings}


def headings(page):
    """The anchors that GitHub makes of a page's headings."""
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in page.read_text().splitlines()}


def words_in_code(page):
    """What a page of the guide has in backticks."""
    return {word.rstrip("/") for word in re.findall(r"`([^`\n]+)`", (GUIDE / page).read_text())}


def named(pages=PAGES):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


@named([page for page in PAGES if "```python" in page.read_text()])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    def small(name, *arguments, **options):
        small_one = name in ("digits", "mnist")
        return pc.load_digits(n_train=600, n_test=200) if small_one else load(name, *arguments, **options)

    load = pc.load_data
    monkeypatch.setattr(pc, "load_data", small)
    monkeypatch.setenv("PARALLELCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    source = ""
    for line, block in code_of(page, "python"):
        source += "\n" * (line - 1 - source.count("\n")) + block  # errors name the page's own lines
    exec(compile(source, page, "exec"), module.__dict__)


def words_of_command(line):
    """The words from the program's name on, without assignments before it."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    return words


def check_command(words, parser):
    """Raise AssertionError or UsageError unless programs, files and options of a command line exist."""
    program = Path(words[0]).name
    if program == "parallelcnn":
        parser.parse_args(words[1:])
    elif program in ("mpirun", "srun", "salloc"):
        start = next(i for i, word in enumerate(words) if i and Path(word).name in ("parallelcnn", "python"))
        known = MPIRUN_OPTIONS if program == "mpirun" else SLURM_OPTIONS
        assert {word.partition("=")[0] for word in words[1:start] if word.startswith("-")} <= known
        check_command(words[start:], parser)
    elif program == "sbatch":
        script = words.index("slurm/train.sbatch")
        assert {word.partition("=")[0] for word in words[1:script]} <= SLURM_OPTIONS
        parser.parse_args(["train", *words[script + 1 :]])
    elif "/" in words[0]:
        assert words[0].startswith(".venv/") or (ROOT / words[0]).is_file()
    else:
        assert program in OTHER_PROGRAMS


@named()
def test_the_command_lines_of_a_page_name_existing_commands_and_options(page):
    parser = _parsers()[0]
    for number, block in code_of(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := words_of_command(line):
                try:
                    check_command(words, parser)
                except Exception as error:
                    pytest.fail(f"{page.name}:{number}: {line}\n{error!r}")
                extras = re.findall(r"\[([\w,]+)\]", line) if words[0] == "pip" else []
                assert all(SETUP.has_option("options.extras_require", e) for found in extras for e in found.split(","))


@named()
def test_the_text_of_a_page_names_existing_options_files_and_functions(page):
    text = page.read_text()
    known = MPIRUN_OPTIONS.union(SLURM_OPTIONS, *map(options_of, subcommands(_parsers()[0]).values()))
    for script in re.findall(r"scripts/[\w/]+\.py", text):
        known |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', (ROOT / script).read_text()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
    assert set(re.findall(r"\bpc\.(\w+)", text)) <= set(dir(pc))
    for file in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|sbatch|md))`", text):
        assert (ROOT / file).exists() or (ROOT / "parallelcnn" / file).exists(), file
    for target, anchor in re.findall(r"\](?:\(|: )([^)\s:#]*)(?:#([\w-]+))?(?:\)|$)", text_outside_code(page), re.M):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), f"{target}#{anchor}"


def test_the_guide_explains_every_option_of_every_command():
    text = "".join(page.read_text() for page in PAGES)
    for name, parser in subcommands(_parsers()[0]).items():
        assert options_of(parser) - {"-h"} <= {"--help", *re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}, name


def test_the_guide_lists_the_defaults_of_train():
    defaults = {one.name.replace("_", "-"): one.default for one, _ in settings()}
    rows = re.findall(r"^\| `--([a-z-]+)[^`]*` \|.*\| `?([\w.]+)`? \|$", (GUIDE / "training.md").read_text(), re.M)
    assert len(rows) >= 8
    for option, listed in rows:
        default = defaults.get(option, "none")
        if default is None or isinstance(default, bool) or default == ():
            default = "off"
        assert listed == (f"{default:g}" if isinstance(default, float) else str(default)), option


@named()
def test_a_page_fits_on_a_terminal(page):
    text = text_outside_code(page)
    assert text.isascii()
    assert text.startswith("# ")
    assert [line for line in text.splitlines() if len(line) > 100] == []


def test_the_readme_is_short_and_leads_to_the_guide():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
    assert "(parallelcnn/guide/index.md)" in README.read_text()


def test_the_index_has_one_line_for_each_page():
    listed = re.findall(r"^\* \[([\w-]+)\]\(\1\.md\): \S", (GUIDE / "index.md").read_text(), re.M)
    assert sorted(listed) == sorted(page.stem for page in PAGES[1:] if page.stem != "index")


def test_how_a_step_works_names_at_most_eight_files():
    files = re.findall(r"^\d\. `([\w/]+\.py)`: ", (GUIDE / "how-a-step-works.md").read_text(), re.M)
    assert 1 <= len(files) <= 8
    assert all((ROOT / "parallelcnn" / file).is_file() for file in files)


def test_readme_and_guide_show_the_output_and_the_files_of_a_run(folder, tmp_path, capsys):
    (shown,) = (block for _, block in code_of(README, "text") if "epoch 1/3" in block)
    assert main(["train", "--data", str(folder), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out

    def form(output):
        lines = re.sub(r"\d[\d,.]*", "0", output[output.index("35,474 parameters") :]).splitlines()
        return [line if line.startswith(("epoch", "done")) else line.split()[0] for line in lines]

    for as_shown, as_printed in zip(form(shown), form(printed), strict=True):
        assert as_printed.startswith(as_shown.removesuffix("..."))

    files = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert files <= words_in_code("training.md")
    with np.load(next(tmp_path.glob("checkpoints/*.npz"))) as checkpoint:
        assert {re.sub(r"^\d+", "0", name) for name in checkpoint} <= words_in_code("file-formats.md")
    assert set(json.loads((tmp_path / "summary.json").read_text())) <= words_in_code("file-formats.md")


def test_the_guide_is_installed_with_the_package():
    patterns = SETUP["options.package_data"]["parallelcnn"].split(", ")
    assert {path for pattern in patterns for path in (ROOT / "parallelcnn").glob(pattern)} >= set(PAGES[1:])


def test_guide_prints_a_page_with_its_links_as_text(capsys):
    assert main(["guide", "index"]) == 0
    index = capsys.readouterr().out
    assert main(["guide"]) == 0
    assert capsys.readouterr().out == index
    assert "* training: " in index
    for page in PAGES[1:]:
        assert main(["guide", page.stem]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(page.read_text().partition("\n")[0])
        assert "](" not in printed


def test_guide_rejects_an_unknown_page_and_names_the_nearest(capsys):
    assert main(["guide", "trainig"]) == 2
    assert "no page 'trainig': did you mean 'training'? (known: " in capsys.readouterr().err


def test_guide_speaks_on_rank_0_only(capsys, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    assert main(["guide"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("pager", "paged"), [("cat >paged", True), (None, True), ("", False), ("no-such-program", False)]
)
def test_guide_uses_the_pager_on_a_terminal(pager, paged, capsys, monkeypatch, tmp_path):
    less = tmp_path / "less"
    less.write_text('#!/bin/sh\n[ "$*" = -R ] && cat >paged\n')
    less.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("PAGER", raising=False)
    if pager is not None:
        monkeypatch.setenv("PAGER", pager)
    assert main(["guide"]) == 0
    printed = capsys.readouterr().out
    read = Path("paged").read_text() if Path("paged").exists() else ""
    assert (read.startswith("# "), printed) == (True, "") if paged else (read == "" and printed.startswith("# "))


def test_guide_imports_neither_numba_nor_mpi():
    script = (
        "import sys; from parallelcnn.cli import main; main(['guide']); print({'numba', 'mpi4py'} & {*sys.modules})"
    )
    ran = run([sys.executable, "-c", script], PMI_SIZE="2", PMI_RANK="0")
    assert ran.out.endswith("\nset()\n"), ran.err
