#!/usr/bin/env bash
# From a fresh clone to a trained network: make .venv, install parallelcnn with an MPI runtime into it, and train the
# paper's network on the built-in digits. Arguments are passed to `parallelcnn train`.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# MPICH, because it needs no options to run as root or with more ranks than cores.
make_environment "$ROOT/.venv" mpich,plot,images
bin=$ROOT/.venv/bin
ranks=$(($(usable_cores "$bin/python") > 1 ? 2 : 1))

# The process id distinguishes two quickstarts in the same second.
out=$ROOT/runs/quickstart-$(date -u +%Y%m%d-%H%M%S)-$$
# The user's arguments come later and override ours.
"$bin/mpirun" -n "$ranks" "$bin/parallelcnn" train --out "$out" "$@"

[[ $PWD -ef $ROOT ]] && bin=.venv/bin || bin=$(printf %q "$bin")
cat <<END

That was the built-in data set. MNIST, downloaded once (11 MB), or from a folder that holds its four files:

    $bin/mpirun -n $ranks $bin/parallelcnn train --data mnist
    $bin/mpirun -n $ranks $bin/parallelcnn train --data mnist --data-dir FOLDER
END
