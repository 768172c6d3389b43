#!/usr/bin/env bash
# musicHuBERT in two iterations: MFCC clusters train a first model, clusters of one of its layers a
# second one, which starts from random weights again.
#
#   bash examples/music_hubert/iterate.sh [OPTION ...] [OVERRIDE ...]
#
#   --manifests DIR   train.tsv and valid.tsv (default: manifests)
#   --out DIR         where all goes (default: runs/music_hubert/iterate):
#                     labels_1, model_1, labels_2, model_2
#   --k K             clusters in both iterations (default: 2000)
#   --layer L         of the first model, for the second one's labels (default: 6 of 12)
#   --first NAME      configuration of the first model (default: k2000)
#   --second NAME     configuration of the second model (default: k2000_iteration2)
#
# An OVERRIDE goes to both trainings, as in
#
#   bash examples/music_hubert/iterate.sh dataset.batch_size=96 'optimization.update_freq=[2]'
#
# Stopped at any moment, the same command continues: labels where they ended, a model from
# its last checkpoint. A model that has been trained to its end is not trained again, as long as its
# file `finished` is there.
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

manifests=manifests out=runs/music_hubert/iterate k=2000 layer=6
first=k2000 second=k2000_iteration2
overrides=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      show_help
      exit
      ;;
    --manifests | --out | --k | --layer | --first | --second)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    -*) fail "no option $1; see bash $0 --help" ;;
    *=*) overrides+=("$1") ;;
    *) fail "$1: neither an option nor an override (key=value); see bash $0 --help" ;;
  esac
  shift
done
[ -e "$manifests/train.tsv" ] \
  || fail "$manifests/train.tsv: no such manifest; make it: python -m manifests_tools pretrain --root MUSIC_DIR"
command -v fairseq-hydra-train > /dev/null || environment quickstart
mkdir -p "$out"
manifests=$(cd "$manifests" && pwd)
out=$(cd "$out" && pwd)
trap 'exit 130' INT

say() {
  printf '\n%s\n' "$*"
}

label() { # folder option...
  local folder=$1
  shift
  python -m music_ssl_fairseq label --k "$k" --manifests "$manifests" --labels "$folder" "$@"
}

train() { # iteration config
  local model="$out/model_$1"
  if [ -e "$model/finished" ]; then
    echo "$model: trained already"
    return
  fi
  fairseq-hydra-train --config-dir "$ROOT/examples/music_hubert" --config-name "$2" \
    "task.data=$(quoted "$manifests")" "task.label_dir=$(quoted "$out/labels_$1")" \
    "hydra.run.dir=$(quoted "$model")" ${overrides[@]+"${overrides[@]}"}
  touch "$model/finished"
}

say "Iteration 1: labels, $k clusters of MFCC"
label "$out/labels_1"
say "Iteration 1: training, $first.yaml"
train 1 "$first"
say "Iteration 2: labels, $k clusters of layer $layer"
label "$out/labels_2" --features deep --layer "$layer" \
  --checkpoint "$out/model_1/checkpoints/checkpoint_last.pt"
say "Iteration 2: training, $second.yaml"
train 2 "$second"
say "$out/model_2/checkpoints/checkpoint_best.pt is the model of iteration 2"
