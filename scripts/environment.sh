# shellcheck shell=bash
# Sourced by quickstart.sh, test.sh and peers.sh: makes virtual environments in the clone, and makes them again only
# when what they depend on has changed.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# With the variables of an outer job or launcher our mpirun would join that job instead of starting its own ranks. With
# those of Python and pip, packages of another environment would be used, or ours installed elsewhere. PIP_USER takes
# precedence over pip's configuration files.
for name in "${!OMPI_@}" "${!PMIX_@}" "${!PRTE_@}" "${!PMI_@}" "${!HYDRA_@}" "${!MPI4PY_@}" \
    "${!SLURM_@}" "${!PBS_@}" "${!LSB_@}" PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_CONSTRAINT; do
    unset "$name"
done
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# find_python: print the Python to make environments with: PYTHON if set, otherwise the first suitable one.
find_python() {
    local python without_venv="" candidates=(python3 python3.11 python3.12 python3.13 python3.14)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        # Run it: version managers put names on the PATH that do not work.
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

# environment_key FOLDER EXTRAS [PACKAGE...]: a hash of what the environment was made from, including its path, since a
# virtual environment cannot be moved.
environment_key() {
    { cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" && printf '%s\n' "$@" && "$1/bin/python" -VV; } 2>/dev/null |
        sha256sum
}

environment_is_current() {
    [[ -s $1/.stamp && $(<"$1/.stamp") == "$(environment_key "$@")" ]]
}

# make_environment FOLDER EXTRAS [PACKAGE...]: make a virtual environment with this clone (editable), its extras and
# further packages, unless it is there and current.
make_environment() {
    local python
    environment_is_current "$@" && return
    [[ -w $ROOT ]] || fail "cannot write to $ROOT, where ${1##*/} is to be made."
    python=$(find_python)
    # One set-up at a time, because all of them write the clone's metadata folder. An existing file serves as the lock.
    # It is opened for writing because NFS requires that; nothing is appended.
    build_environment "$python" "$@" 9>>"$ROOT/setup.cfg" ||
        fail "${1##*/} could not be set up (see above). Run it again: it starts over."
}

# An empty stamp means that a set-up was begun and not finished; no stamp, that the folder was made by somebody else.
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
    # One chain of &&, because `set -e` has no effect in a function that is called before ||.
    rm -rf "$folder" && mkdir "$folder" && : >"$folder/.stamp" &&
        "$python" -m venv "$folder" &&
        (cd "$ROOT" && "$folder/bin/python" -m pip install -qq -e ".[$extras]" "${@:3}") &&
        environment_key "$@" >"$folder/.stamp"
}

# usable_cores PYTHON: print how many cores this process may use, by its affinity and the container's quota.
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
