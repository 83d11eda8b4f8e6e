# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: virtual environments in the clone, made once and kept until what they
# depend on changes.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# An outer job's or launcher's variables would make our mpirun join that job instead of starting its own ranks, and
# Python's and pip's would let packages of another environment in, or ours out. pip reads PIP_USER before its files.
for name in "${!OMPI_@}" "${!PMIX_@}" "${!PRTE_@}" "${!PMI_@}" "${!HYDRA_@}" "${!MPI4PY_@}" \
    "${!SLURM_@}" "${!PBS_@}" "${!LSB_@}" PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_CONSTRAINT; do
    unset "$name"
done
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Prints the Python to build environments from: PYTHON if set, else the first that serves.
find_python() {
    local python without_venv="" candidates=(python3 python3.11 python3.12 python3.13 python3.14)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        # Run it: version managers put names on the PATH that lead nowhere.
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            return
        fi
        without_venv=${without_venv:-$python}
    done
    if [[ -n $without_venv ]]; then
        fail "$without_venv ($("$without_venv" -V)) cannot make virtual environments: its venv or ensurepip module" \
            "is missing. On Debian and Ubuntu: apt install python3-venv"
    fi
    fail "needs Python 3.11 or newer, which none of these is: ${candidates[*]}." \
        "PYTHON=/path/to/python ${0##*/} names one that is elsewhere."
}

# What environment $1 was made from. Its own path is part of it: a virtual environment does not survive a move.
environment_key() {
    { cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" && printf '%s\n' "$@" && "$1/bin/python" -VV; } 2>/dev/null |
        sha256sum
}

environment_is_current() {
    [[ -s $1/.stamp && $(<"$1/.stamp") == "$(environment_key "$@")" ]]
}

# make_environment FOLDER EXTRAS [PACKAGE...]: a virtual environment with this clone, editable, and its extras.
make_environment() {
    local python
    environment_is_current "$@" && return
    [[ -w $ROOT ]] || fail "cannot write to $ROOT, where ${1##*/} is to be made."
    python=$(find_python)
    # One set-up at a time: they share the clone's metadata folder. A file that is there anyway serves as the lock,
    # opened for writing because NFS wants that; nothing is appended.
    build_environment "$python" "$@" 9>>"$ROOT/setup.cfg" ||
        fail "${1##*/} could not be set up (see above). Run it again: it starts over."
}

# An empty stamp means begun and not finished; no stamp at all, that the folder is somebody else's.
build_environment() {
    local python=$1 folder=$2 extras=$3
    shift
    if command -v flock >/dev/null && ! flock -n 9; then
        echo "Waiting for another set-up of this clone ..."
        flock 9
    fi
    environment_is_current "$@" && return
    [[ ! -e $folder || -e $folder/.stamp ]] ||
        fail "$folder exists and was not made by this script: move it away."
    echo "Setting up ${folder##*/} with $("$python" -V) (a minute or two, once) ..."
    # One chain of &&: `set -e` is off in a function that || follows.
    rm -rf "$folder" && mkdir "$folder" && : >"$folder/.stamp" &&
        "$python" -m venv "$folder" &&
        (cd "$ROOT" && "$folder/bin/python" -m pip install -qq -e ".[$extras]" "${@:3}") &&
        environment_key "$@" >"$folder/.stamp"
}

# usable_cores PYTHON: how many cores this process may use, by affinity and by the container's quota.
usable_cores() {
    "$1" - <<'PY'
import os
from pathlib import Path

cores = len(os.sched_getaffinity(0))
groups = Path("/proc/self/cgroup")
for line in groups.read_text().splitlines() if groups.exists() else ():
    _, controllers, path = line.split(":", 2)
    v1 = "cpu" in controllers.split(",")
    folder = Path("/sys/fs/cgroup", "cpu" if v1 else "", path.strip("/"))
    for group in (folder, *folder.parents):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if v1 else ("cpu.max",)
        if all((group / name).is_file() for name in names):
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                cores = min(cores, int(quota) // int(period))
print(max(1, cores))
PY
}
