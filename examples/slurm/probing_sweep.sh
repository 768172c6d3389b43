#!/usr/bin/env bash
# Probe several encoders on several tasks, one Slurm job each, through hydra's submitit launcher
# (pip install -e '.[slurm]'):
#
#   bash PATH_TO/examples/slurm/probing_sweep.sh model.upstream=CHECKPOINT,mfcc,chroma \
#     task.data=probing/gtzan-genre,probing/emomusic [hydra.launcher.partition=gpu ...]
#
# Waits for all jobs; their logs are in runs/probing/.submitit/. The same command continues jobs that
# were stopped, and leaves finished ones as they are. Then: python -m music_ssl_fairseq report
# runs/probing.
set -euo pipefail

python -c 'import hydra_plugins.hydra_submitit_launcher' 2> /dev/null || {
  echo "error: hydra's submitit launcher is missing: pip install hydra-submitit-launcher" >&2
  exit 1
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
exec fairseq-hydra-train --config-dir "$here/probing" --multirun hydra/launcher=submitit_slurm \
  hydra.launcher.timeout_min=240 hydra.launcher.gpus_per_node=1 hydra.launcher.cpus_per_task=8 "$@"
