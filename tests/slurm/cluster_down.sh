#!/usr/bin/env bash
# cluster_down.sh FOLDER: ends the jobs and daemons of cluster_up.sh, and removes FOLDER.
set -uo pipefail
folder=${1:?usage: cluster_down.sh FOLDER}
export SLURM_CONF=$folder/slurm.conf

# A zombie counts as gone: in a container nobody may ever collect it.
alive() { grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$1/status"; }

# A pid file may be stale and its number another process's by now: a daemon of ours was started with our folder.
ours() { [[ -n $1 ]] && alive "$1" && tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF "$folder/"; }

stop() {
    local file pid pids=()
    for file in "$@"; do
        [[ -s $file ]] || continue
        pid=$(<"$file")
        ours "$pid" || continue
        kill "$pid"
        pids+=("$pid")
    done
    for pid in "${pids[@]}"; do
        for _ in $(seq 50); do
            alive "$pid" || break
            sleep 0.1
        done
        ! ours "$pid" || kill -9 "$pid"
    done
}

# Jobs first, or what they run would outlive the daemons.
if [[ -s $folder/run/slurmctld.pid ]] && ours "$(<"$folder/run/slurmctld.pid")"; then
    for state in PENDING RUNNING SUSPENDED; do
        timeout 5 scancel --state=$state
    done
    for _ in $(seq 100); do
        [[ -n $(timeout 5 squeue -h) ]] || break
        sleep 0.1
    done
fi
stop "$folder"/run/slurmd.*.pid "$folder/run/slurmctld.pid"
# Last: the others say goodbye with its signature.
stop "$folder/run/munged.pid"
rm -rf "$folder"
