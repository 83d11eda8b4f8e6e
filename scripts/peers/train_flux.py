#!/usr/bin/env python3
"""The paper's network in Flux.jl, which train_flux.jl trains; this file gives it the data and reads what comes back.

Flux draws its own start values and its own order, so its losses differ from the others' as another seed's would.
`allocated_bytes` is that of Julia's @timed, which the paper's tables hold.

Variants: --threads are Julia's, those of its BLAS, or both.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from contract import Meter, load, parse_options, print_result, skip

PROGRAM = Path(__file__).with_suffix(".jl")
VARIANTS = {"julia_threads": (True, False), "blas_threads": (False, True), "both_threads": (True, True)}


def main() -> None:
    options = parse_options("Flux", tuple(VARIANTS))
    julia = shutil.which("julia")
    if julia is None:
        skip(options, "Flux is not installed here (there is no julia on the PATH)")
    found = subprocess.run([julia, "--startup-file=no", "-e", "using Flux"], capture_output=True, text=True)
    if found.returncode != 0:
        skip(options, f"Flux is not installed here: {found.stderr.strip()[:200]}")
    with tempfile.TemporaryDirectory() as folder, Meter() as loading:
        data = load(options)
        for name, array in data._asdict().items():
            array.tofile(Path(folder, name))
        in_julia, in_blas = (options.threads if many else 1 for many in VARIANTS[options.variant])
        numbers = (options.epochs, options.batch_size, options.learning_rate, options.seed, in_blas)
        command = [julia, "--startup-file=no", f"--threads={in_julia}", str(PROGRAM), folder, *map(str, numbers)]
        # Julia counts by itself.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode != 0:
            sys.exit(f"{PROGRAM.name} failed with exit code {done.returncode} (see above)")
        results = dict(line.split(" ", 1) for line in done.stdout.splitlines())
        losses = [float(line) for line in Path(folder, "losses").read_text().split()]
    training = Meter()
    training.seconds = float(results["train_seconds"])
    training.allocated_bytes = int(results["allocated_bytes"])
    loading.allocated_bytes = int(results["loading_allocated_bytes"])
    print_result(
        options,
        loading=loading,
        training=training,
        losses=losses,
        versions={"julia": results["julia"], "flux": results["flux"]},
        peak_rss=int(results["peak_rss_bytes"]),
        **{name: float(results[name]) for name in ("train_accuracy", "test_accuracy", "test_loss")},
    )


if __name__ == "__main__":
    main()
