#!/usr/bin/env bash
# cluster_up.sh FOLDER: two emulated SLURM nodes on the loopback interface, without systemd, cgroups or a database.
# Needs root and Debian's slurm-wlm and munge. FOLDER is new and short: it holds sockets, whose paths are limited to
# 108 characters. A SLURM of the machine's own is not touched: everything is under FOLDER, on ports nobody listens on.
# Commands reach the cluster by SLURM_CONF=FOLDER/slurm.conf; cluster_down.sh FOLDER ends it.
set -euo pipefail
PATH=$PATH:/usr/sbin
folder=${1:?usage: cluster_up.sh FOLDER}
here=$(dirname "${BASH_SOURCE[0]}")
host=$(hostname -s)
memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
# munged wants a socket that every user can reach, in folders that only we can write to.
umask 022
mkdir "$folder"
mkdir -p "$folder"/{munge,state,log,run} "$folder"/{spool,tmp}/node{1,2}
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")

# Three ports in a row that nobody listens on, below those that the kernel hands out to clients.
ports_are_free() {
    local port
    for port in $1 $(($1 + 1)) $(($1 + 2)); do
        ! (exec 8<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || return 1
    done
}
port=$((10000 + RANDOM % 20000))
until ports_are_free "$port"; do port=$((10000 + RANDOM % 20000)); done

cat >"$folder/slurm.conf" <<END
ClusterName=emulated
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
TmpFS=$folder/tmp/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmdParameters=config_overrides
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=5
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$folder/slurm.conf

give_up() {
    echo "the emulated SLURM cluster did not come up" >&2
    tail -n 20 "$folder"/log/*.log >&2
    "$here/cluster_down.sh" "$folder"
    exit 1
}
munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" --num-threads=2 || give_up
slurmctld -f "$SLURM_CONF" || give_up
for node in node1 node2; do
    slurmd -f "$SLURM_CONF" -N "$node" || give_up
done
for _ in $(seq 100); do
    if [[ $(timeout 5 sinfo -h -N -t idle -o %N 2>/dev/null | wc -l) == 2 ]]; then
        exit 0
    fi
    sleep 0.1
done
give_up
