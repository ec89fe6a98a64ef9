#!/usr/bin/env bash
# A Slurm cluster of one node on this machine, for one user and without munge, on ports of its own.
#   slurm_node.sh start DIR CONTROLLER_PORT NODE_PORT      then SLURM_CONF=DIR/slurm.conf sbatch, squeue, scontrol, ...
#   slurm_node.sh stop DIR
set -euo pipefail
dir=$2

case $1 in
start)
  mkdir -p "$dir/state" "$dir/spool"
  cat > "$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$3
SlurmdPort=$4
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldLogFile=$dir/controller.log
SlurmdLogFile=$dir/node.log
SlurmctldPidFile=$dir/controller.pid
SlurmdPidFile=$dir/node.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
MpiDefault=none
ReturnToService=2
JobRequeue=1
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
  export SLURM_CONF=$dir/slurm.conf
  slurmctld
  slurmd
  ;;
stop)
  for daemon in node controller; do
    if [ -e "$dir/$daemon.pid" ]; then kill "$(cat "$dir/$daemon.pid")" || true; fi
  done
  ;;
esac
