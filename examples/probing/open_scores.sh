#!/usr/bin/env bash
# Does probing measure anything? Key and instrument family on rendered scores, for MFCC, chroma, a
# checkpoint, and the same model with random weights.
#
#   bash examples/probing/open_scores.sh CHECKPOINT [WORK_DIR [OPTION...]]
#
# Renders into WORK_DIR (open_scores) what the options say (open_scores.py --help), trains and scores
# eight probes, and ends with the table. What is there already is not made again.
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

checkpoint=$(realpath -e "${1:?usage: open_scores.sh CHECKPOINT [WORK_DIR [OPTION...]]}")
work=${2:-open_scores}
shift "$(($# < 2 ? $# : 2))"
environment probing,quickstart

mkdir -p "$work"
cd "$work"
python "$ROOT/examples/probing/open_scores.py" --out . "$@"
for task in key instrument; do
  for upstream in mfcc chroma "$checkpoint" "random:$checkpoint"; do
    case $upstream in
      mfcc | chroma) name=$upstream ;;
      random:*) name=random ;;
      *) name=trained ;;
    esac
    run="runs/$task/$name"
    [[ -e $run/test.json ]] && continue
    # Small data: an epoch is half a dozen updates, so more of them may pass without progress.
    fairseq-hydra-train --config-dir "$ROOT/examples/probing" \
      model.upstream="$(quoted "$upstream")" task.data="$task/task" hydra.run.dir="$run" \
      model.patience=25 model.lr_patience=10 optimization.max_epoch=200
    fairseq-validate "$task/task" --path "$run/checkpoints/checkpoint_best.pt" \
      --user-dir "$ROOT/music_ssl_fairseq" --task music_probing --valid-subset test --batch-size 64
  done
done
python -m music_ssl_fairseq.report runs --out report
