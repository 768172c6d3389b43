#!/usr/bin/env bash
# Does probing measure anything? Key and instrument family on rendered scores, for MFCC, chroma, a
# trained model, and the same model with random weights.
#
#   bash examples/probing/open_scores.sh [CHECKPOINT|train [WORK_DIR [OPTION...]]]
#
# Renders into WORK_DIR (open_scores) what the options say (open_scores.py --help), trains and scores
# eight probes, and ends with the table and what it shows. Without a CHECKPOINT, or with `train` in
# its place, a musicHuBERT is trained first, on other rendered scores: a small one on a CPU, a larger
# one if there is a GPU. What is there already is not made again.
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

case "${1:-}" in
  -h | --help)
    show_help
    exit
    ;;
esac
checkpoint=${1:-train}
work=${2:-open_scores}
shift "$(($# < 2 ? $# : 2))"
[ "$checkpoint" = train ] || checkpoint=$(realpath -e "$checkpoint") || fail "see bash $0 --help"
environment probing,quickstart

mkdir -p "$work"
cd "$work"
trap 'exit 130' INT
began=$SECONDS

heading() {
  printf '\n[%d s] %s\n' "$((SECONDS - began))" "$*"
}

heading "Two tasks: key of chorales, instrument family of notes"
python "$ROOT/examples/probing/open_scores.py" --out . "$@"

if [ "$checkpoint" = train ]; then
  if has_gpu; then
    config=open_scores_gpu tracks=560
  else
    config=open_scores tracks=400
  fi
  heading "Other scores to train on: $tracks tracks"
  python "$ROOT/examples/probing/open_corpus.py" --out music --tracks "$tracks"
  [ -e manifests/train.tsv ] || python -m manifests_tools pretrain --root music
  python -m music_ssl_fairseq.label --features chroma --k 200
  heading "musicHuBERT, examples/music_hubert/$config.yaml"
  # Two threads wait for each other more than they work on layers this small.
  [ -e "runs/$config/finished" ] || OMP_NUM_THREADS=1 fairseq-hydra-train \
    --config-dir "$ROOT/examples/music_hubert" --config-name "$config" hydra.run.dir="runs/$config"
  touch "runs/$config/finished"
  checkpoint=$PWD/runs/$config/checkpoints/checkpoint_last.pt
fi

for task in key instrument; do
  for upstream in mfcc chroma "$checkpoint" "random:$checkpoint"; do
    case $upstream in
      mfcc | chroma) name=$upstream ;;
      random:*) name=random ;;
      *) name=trained ;;
    esac
    run="probes/$task/$name"
    [ -e "$run/test.json" ] && continue
    heading "Probe: $task, $name"
    # Small data: an epoch is a dozen updates, so more of them may pass without progress.
    fairseq-hydra-train --config-dir "$ROOT/examples/probing" \
      model.upstream="$(quoted "$upstream")" task.data="$task/task" hydra.run.dir="$run" \
      model.patience=25 model.lr_patience=10 optimization.max_epoch=200
    fairseq-validate "$task/task" --path "$run/checkpoints/checkpoint_best.pt" \
      --user-dir "$ROOT/music_ssl_fairseq" --task music_probing --valid-subset test --batch-size 64
  done
done
heading "What they know"
python -m music_ssl_fairseq.report probes --out report
python "$ROOT/examples/probing/open_verdict.py" probes
