#!/bin/sh
# Run a command on one of the emulated hosts (emulated_hosts.py): on_host.sh [-OPTION...] ADDRESS COMMAND...
# Launchers of MPI call it in place of ssh. PARALLELCNN_HOSTS: what the names of the namespaces begin with.
set -eu
while [ "${1#-}" != "$1" ]; do shift; done
number=${1##*.}
shift
# Like ssh, a shell reads the words once more.
# shellcheck disable=SC2016  # the inner shell expands them
exec ip netns exec "$PARALLELCNN_HOSTS-$number" unshare --uts sh -c 'hostname "host$0"; eval "$1"' "$number" "$*"
