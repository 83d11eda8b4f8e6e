#!/usr/bin/env python3
"""Feeds the readers of files and of the command line what nobody should write, guided by which code that reaches.

    scripts/fuzz.py --target all --seconds 300 --findings findings     # pip install -e .[fuzz]
    scripts/fuzz.py --target model --again findings/model-0123456789ab  # feed one finding once more, see it fail

libFuzzer, through atheris, changes inputs that have reached new code and keeps those that reach more. What no input may
bring about is in `fuzzing.watch`: another exception than this library's own for bad input, a long time, more memory
than the file accounts for, a written file, a started program, an import, a compilation, a pickle. Every kind of it is
kept once, as the input and a .txt beside it that says what happened. Exit code 1 if there is any.
"""

import argparse
import hashlib
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from measuring import (
    file_to_write,
    markdown_table,
    page_head,
    positive_integer,
    print_page,
    require_packages,
    run_to_the_end,
)

import parallelcnn

TARGET_NAMES = {
    "idx": "IDX files, plain and gzipped, alone and in a folder of four",
    "model": "model files",
    "checkpoint": "checkpoints, and the training that starts from them",
    "command": "command line, environment, control groups, models of users' own",
}
_ADDRESS_SPACE = 4 * 2**30  # bytes: what a reader claims beyond that does not bring the machine down
_HANG = 30  # seconds
_LONGEST_INPUT = 2**16  # bytes
_INSTRUMENTED = ["parallelcnn", "zipfile"]
# numba compiles the bytecode of these, and atheris would have changed it.
_KERNELS = [f"parallelcnn.kernels.{path.stem}" for path in Path(parallelcnn.__file__).parent.glob("kernels/*.py")]


def main() -> int:
    options = _options()
    if options.again:
        return feed_again(options.target, options.again)
    if options.worker:
        fuzz(options.target, Path(options.findings), options.seconds, options.seed)
    names = list(TARGET_NAMES) if options.target == "all" else [options.target]
    findings = Path(options.findings)
    findings.mkdir(parents=True, exist_ok=True)
    rows, found = [], 0
    for name in names:
        row = run_worker(name, findings, options.seconds, options.seed)
        rows.append(row)
        found += int(row[-1])
        print(f"{name}: {row[1]} executions, {row[2]} s, {row[3]} a second, {row[-1]} findings", flush=True)
    header = ["read", "executions", "seconds", "a second", "edges", "features", "inputs kept", "findings"]
    page = f"""{page_head("Fuzzing", "numpy", "atheris")}; on one core.
Edges are branches of this library's code and of zipfile's that were reached, features those with how often and what
they compared; what is kept are inputs that reached new ones.

{markdown_table(header, rows)}

A finding is any other exception than this library's for bad input, a message that is not one printable sentence, more
than 2 s, more memory than what a file holds accounts for, or any writing, starting, connecting, importing, compiling or
unpickling. Every kind of them counts once.
"""
    print_page(page, options.page)
    return 1 if found else 0


def run_worker(name: str, findings: Path, seconds: int, seed: int) -> list[str]:
    """Fuzz one target in a process of its own; returns its row of the table."""
    before = set(findings.iterdir())
    command = [sys.executable, __file__, "--worker", "--target", name, "--seconds", str(seconds), "--seed", str(seed)]
    process = subprocess.run([*command, "--findings", str(findings)], stderr=subprocess.PIPE, errors="replace")
    new = {path for path in findings.iterdir() if path.suffix != ".txt"} - before
    log = process.stderr
    executions = re.search(r"stat::number_of_executed_units: *(\d+)", log)
    took = re.search(r"Done \d+ runs in (\d+) second", log)
    state = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", log)
    # Also what ends the process is a finding: a crash, a hang, all memory used up.
    if process.returncode != 0 or not executions or not state:
        (findings / f"{name}.txt").write_text(log)
        print(
            f"{name}: the process ended with {process.returncode}; the end of what it said:\n{log[-3000:]}", flush=True
        )
        new.add(findings / f"{name}.txt")
    done = int(executions[1]) if executions else 0
    lasted = int(took[1]) if took else seconds
    edges, features, kept = state[-1] if state else ("?", "?", "?")
    numbers = [f"{done:,}", f"{lasted:,}", f"{done / max(lasted, 1):,.0f}", edges, features, kept]
    return [TARGET_NAMES[name], *numbers, str(len(new))]


def fuzz(name: str, findings: Path, seconds: int, seed: int) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris
    import numba  # noqa: F401
    import numpy as np  # noqa: F401

    with atheris.instrument_imports(include=_INSTRUMENTED, exclude=_KERNELS):
        sys.modules.pop("zipfile", None)  # numpy has imported it
        from fuzzing.targets import TARGETS
    from fuzzing.watch import Violation

    target = TARGETS[name]
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    known: set[str] = set()
    findings = findings.resolve()

    with tempfile.TemporaryDirectory() as temporary:
        corpus, work = Path(temporary, "corpus"), Path(temporary, "work")
        corpus.mkdir()
        work.mkdir()
        for i, content in enumerate(target.seeds()):
            (corpus / str(i)).write_bytes(content)

        def one_input(content: bytes) -> None:
            try:
                target.examine(content, work)
            except Violation as violation:
                keep(findings / name, content, violation, known)

        def mutate(content: bytes, most: int, number: int) -> bytes:
            rng = random.Random(number)
            changed = target.mutate(content, rng, lambda piece: atheris.Mutate(piece, len(piece) + rng.randrange(64)))
            return changed if len(changed) <= most else atheris.Mutate(content, most)

        one_input(target.seeds()[0])  # imports what is imported once
        arguments = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={_LONGEST_INPUT}",
            f"-timeout={_HANG}",
            "-rss_limit_mb=3072",
            "-print_final_stats=1",
            f"-artifact_prefix={findings / name}-",
        ]
        atheris.Setup([sys.argv[0], *arguments, str(corpus)], one_input, custom_mutator=mutate)
        atheris.Fuzz()


def keep(stem: Path, content: bytes, violation: Exception, known: set[str]) -> None:
    """Write down a finding, unless one of its kind is known."""
    kind = re.sub(r"\d+\.\d+|0x[0-9a-f]+", "#", str(violation))[:80]
    if kind in known:
        return
    known.add(kind)
    path = Path(f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}")
    path.write_bytes(content)
    path.with_suffix(".txt").write_text("".join(traceback.format_exception(violation)), errors="backslashreplace")


def feed_again(name: str, path: str) -> int:
    """Feed one input, without atheris; returns the exit code."""
    from fuzzing.targets import TARGETS
    from fuzzing.watch import Violation

    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        TARGETS[name].examine(TARGETS[name].seeds()[0], Path(folder))
        try:
            refused = TARGETS[name].examine(Path(path).read_bytes(), Path(folder))
        except Violation:
            traceback.print_exc()
            return 1
    print(f"refused: {refused}" if refused else "taken")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzzes the readers of files and of the command line.")
    parser.add_argument("--target", choices=[*TARGET_NAMES, "all"], default="all", help="(default: all)")
    parser.add_argument("--seconds", type=positive_integer, default=60, help="for each target (default: 60)")
    parser.add_argument("--seed", type=positive_integer, default=1, help="of libFuzzer (default: 1)")
    parser.add_argument(
        "--findings", default="findings", metavar="DIR", help="where findings are kept (default: findings)"
    )
    parser.add_argument("--again", metavar="FILE", help="feed this finding of --target once more")
    parser.add_argument("--page", type=file_to_write, metavar="FILE", help="write the page, Markdown, to FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.again and options.target == "all":
        parser.error("--again takes the --target whose finding it is")
    if not options.again:
        require_packages(parser, "atheris")
    return options


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_to_the_end(main)
