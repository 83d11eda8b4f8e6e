#!/usr/bin/env bash
# Make .venv-peers, with parallelcnn, an MPI runtime and the frameworks that it is compared with, and run a Python
# script in it:
#
#     scripts/peers.sh                                                  # print what can be run
#     scripts/peers.sh scripts/benchmarks/compare.py --data mnist --networks paper
#
# PyTorch is installed with its GPU libraries unless PIP_EXTRA_INDEX_URL names an index with its CPU builds.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment "$ROOT/.venv-peers" mpich,plot,peers
if (($#)); then
    exec "$ROOT/.venv-peers/bin/python" "$@"
fi
cat <<END
Timings, and the paper's tables and figures:

    scripts/peers.sh scripts/benchmarks/compare.py --data mnist --networks paper --cores 2 1 --epochs 3
    scripts/peers.sh scripts/paper/reproduce_paper.py --data mnist --out scripts/paper/results
END
