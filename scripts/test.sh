#!/usr/bin/env bash
# Sets itself up and runs all checks and tests, against both MPI libraries. With arguments: only pytest, with those.
# PARALLELCNN_TEST_EXTRA_PACKAGES: further packages for the tests that want them, e.g. torch.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

mpich=$ROOT/.venv-test-mpich
openmpi=$ROOT/.venv-test-openmpi
read -ra extra_packages <<<"${PARALLELCNN_TEST_EXTRA_PACKAGES:-}"

# Open MPI declines both unless told; MPICH does not mind.
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
if [[ $(id -u) == 0 ]]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

make_environment "$mpich" mpich,plot,test "${extra_packages[@]}"
if (($#)); then
    exec "$mpich/bin/python" -m pytest "$@"
fi
make_environment "$openmpi" openmpi,test
echo "== environments: ready after ${SECONDS} s"

report=()
failed=0
# Or Ctrl-C, which pytest takes for the end of its own run, would only lead to the next stage.
trap 'exit 130' INT

# stage NAME COMMAND...: runs it, says how long it took, remembers how it ended.
stage() {
    local name=$1 start=$SECONDS verdict=passed
    shift
    echo "== $name"
    "$@" || verdict="FAILED ($?)"
    [[ $verdict == passed ]] || failed=1
    report+=("$name: $verdict in $((SECONDS - start)) s")
    echo "== ${report[-1]}"
}

stage "ruff format" "$mpich/bin/ruff" format --check .
stage "ruff check" "$mpich/bin/ruff" check .
stage "mypy" "$mpich/bin/mypy"
if command -v shellcheck >/dev/null; then
    stage "shellcheck" shellcheck -x scripts/*.sh tests/slurm/*.sh slurm/*.sbatch .ci/run
else
    report+=("shellcheck: not installed, left out")
fi

stage "all tests, MPICH" "$mpich/bin/python" -m pytest
stage "MPI and SLURM tests, Open MPI" "$openmpi/bin/python" -m pytest -m "mpi or slurm"

# The kernels as plain Python, and compiled with checked indices; side by side, since neither uses more than one core.
# Each with a new cache: numba's does not tell these settings apart, nor does it notice a change of its options.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
# shellcheck disable=SC2317 # it is called, by stage
test_kernels_in_both_modes() {
    local mode running=() bad=0
    for mode in NUMBA_DISABLE_JIT NUMBA_BOUNDSCHECK; do
        env "$mode=1" "NUMBA_CACHE_DIR=$cache/$mode" "$mpich/bin/python" -m pytest -p no:cacheprovider \
            tests/test_kernels.py tests/test_layers.py tests/test_losses.py >"$cache/$mode.log" 2>&1 &
        running+=($!)
    done
    for mode in NUMBA_DISABLE_JIT NUMBA_BOUNDSCHECK; do
        wait "${running[0]}" || bad=1
        running=("${running[@]:1}")
        echo "-- $mode=1"
        cat "$cache/$mode.log"
    done
    return "$bad"
}
stage "kernel, layer and loss tests with NUMBA_DISABLE_JIT=1 and with NUMBA_BOUNDSCHECK=1" test_kernels_in_both_modes

echo
printf '== %s\n' "${report[@]}"
echo "== all after ${SECONDS} s: $( ((failed)) && echo FAILED || echo passed)"
exit "$failed"
