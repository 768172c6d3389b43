#!/usr/bin/env bash
# Start or stop a Slurm of two nodes on this machine, to try what a cluster does:
#
#   bash tests/integration/slurm.sh start FOLDER     # then: export SLURM_CONF=FOLDER/slurm.conf
#   bash tests/integration/slurm.sh stop FOLDER
#
# Needs root, and slurm-wlm and munge (Debian: apt-get install slurm-wlm munge). The nodes are two slurmd
# on the same CPUs. One takes its host for HOST, the other for HOST-second. They claim 64 CPUs and 8
# GPUs each that they do not have, so that scripts for large nodes can be submitted as they are.
# Nothing outside of FOLDER is touched.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 1
}

free_ports() { # how many
  python3 - "$1" << 'EOF'
import socket, sys
found = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(server.getsockname()[1] for server in found))
EOF
}

configure() {
  local user ports
  user=$(id -un)
  read -r -a ports <<< "$(free_ports 3)"
  cat > slurm.conf << EOF
ClusterName=test
SlurmctldHost=$first(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$PWD/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$PWD/state
SlurmdSpoolDir=$PWD/spool.%n
SlurmctldPidFile=$PWD/slurmctld.pid
SlurmdPidFile=$PWD/slurmd.%n.pid
SlurmctldLogFile=$PWD/slurmctld.log
SlurmdLogFile=$PWD/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=5,requeue_delay=1
ReturnToService=2
KillWait=5
MinJobAge=3600
JobRequeue=1
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$first NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=64 RealMemory=500000 Gres=gpu:8
NodeName=$second NodeAddr=127.0.0.2 Port=${ports[2]} CPUs=64 RealMemory=500000 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
  { cat /etc/hosts && echo && echo "127.0.0.1 $first $second"; } > hosts
  touch gpu{0..7}
  echo "Name=gpu File=$PWD/gpu[0-7]" > gres.conf
}

start_node() { # name: a slurmd that takes this for the name of its host, and knows the way there
  # shellcheck disable=SC2016
  unshare --uts --mount bash -c 'mount --bind hosts /etc/hosts && hostname "$0" && slurmd' "$1" \
    || fail "slurmd needs root, to take another name"
}

start() {
  for command in munged slurmctld slurmd sbatch; do
    [ -n "$(type -P "$command")" ] || fail "$command is missing: apt-get install slurm-wlm munge"
  done
  mkdir -p "$1"
  cd "$1"
  [ ! -e slurm.conf ] || fail "$1/slurm.conf: a cluster is here already; stop it first"
  mkdir -p state "spool.$first" "spool.$second"
  configure
  head -c 1024 /dev/urandom > munge.key
  chmod 600 munge.key
  # --force: the folder may belong to a group, as temporary folders do.
  munged --force --key-file="$PWD/munge.key" --socket="$PWD/munge.socket" --num-threads=1 \
    --pid-file="$PWD/munged.pid" --log-file="$PWD/munged.log" --seed-file="$PWD/munged.seed" \
    2> munged.warnings || fail "munged: $(cat munged.warnings)"
  export SLURM_CONF=$PWD/slurm.conf
  slurmctld -c
  start_node "$first"
  start_node "$second"
  for ((i = 0; i < 60; i++)); do
    if [ "$(sinfo -h -N -t idle -o %N 2> /dev/null | wc -l)" -eq 2 ]; then
      return
    fi
    sleep 0.5
  done
  fail "the nodes did not start: see the logs in $PWD"
}

stop() {
  cd "$1"
  export SLURM_CONF=$PWD/slurm.conf
  scancel --quiet --user="$(id -un)" 2> /dev/null || true
  for ((i = 0; i < 20; i++)); do
    [ -n "$(squeue -h 2> /dev/null)" ] || break
    sleep 0.5
  done
  local file pid
  for file in slurmctld.pid "slurmd.$first.pid" "slurmd.$second.pid" munged.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2> /dev/null || true
    for ((i = 0; i < 20; i++)); do
      [ -e "$file" ] || break # each removes its own
      sleep 0.25
    done
  done
  rm -f slurm.conf
}

export PATH="$PATH:/usr/sbin:/sbin"
first=$(hostname -s)
second=$first-second
case "${1:-} $#" in
  "start 2" | "stop 2") "$1" "$2" ;;
  *) fail "usage: bash $0 start|stop FOLDER" ;;
esac
