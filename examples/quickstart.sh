#!/usr/bin/env bash
# From music to two trained models, in one command:
#
#   bash examples/quickstart.sh [MUSIC_DIR]
#
# Installs the package into .venv of the repository (or into $MUSIC_SSL_VENV), takes the
# music of MUSIC_DIR or renders a small corpus of chorales, makes manifests and labels, trains
# music2vec and music_hubert, resumes one of them, validates both, and draws their curves. On a CPU
# the models are tiny and the whole takes some five minutes: it shows that everything works, not
# good music models. On a GPU they are of the paper's size, trained for minutes.
#
# Everything goes to quickstart/ in the repository, or to $QUICKSTART_DIR. Steps that finished are
# not done again, so an interrupted run continues where it stopped.
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

case "${1:-}" in
  -h | --help)
    show_help
    exit
    ;;
esac
[ $# -le 1 ] || fail "usage: bash $0 [MUSIC_DIR]"
[ $# -eq 0 ] || [ -d "$1" ] || fail "$1: no such folder"
mkdir -p "${QUICKSTART_DIR:-$ROOT/quickstart}"
out=$(cd "${QUICKSTART_DIR:-$ROOT/quickstart}" && pwd)
music="$out/music"
[ $# -eq 0 ] || music=$(cd "$1" && pwd)
cd "$ROOT"
mkdir -p "$out/.done" "$out/logs"
# Labels and checkpoints of one corpus must not be continued with another.
[ -e "$out/music_dir" ] || echo "$music" > "$out/music_dir"
[ "$(cat "$out/music_dir")" = "$music" ] \
  || fail "$out holds a quickstart with other music, $(cat "$out/music_dir"): remove that folder, or" \
    "set QUICKSTART_DIR to another one"

number=0
steps=11
watcher=
trap '[ -z "$watcher" ] || kill "$watcher" 2> /dev/null || true' EXIT
# Ctrl-C ends the whole, also where the step it interrupts catches it.
trap 'exit 130' INT

heading() { # title
  number=$((number + 1))
  printf '\n[%d/%d] %s\n' "$number" "$steps" "$1"
}

# Show the last line of a log, until killed.
watch_log() { # log
  while sleep 1; do
    printf '\r\033[K  %s' "$(tail -c 400 "$1" | tr '\r' '\n' | sed '/^ *$/d' | tail -n 1 | cut -c 1-110)"
  done
}

# Run a command once, with its output in a log. An earlier run that finished counts.
step() { # name title pattern-of-lines-to-show command...
  local name=$1 title=$2 pattern=$3 log="$out/logs/$1.log" began=$SECONDS status=0
  shift 3
  heading "$title"
  printf '  $'
  printf ' %q' "$@"
  echo
  if [ -e "$out/.done/$name" ]; then
    echo "  already done; its log is $log"
  else
    : > "$log"
    if [ -t 1 ]; then
      watch_log "$log" &
      watcher=$!
    fi
    "$@" < /dev/null > "$log" 2>&1 || status=$?
    if [ -n "$watcher" ]; then
      kill "$watcher" 2> /dev/null || true
      wait "$watcher" 2> /dev/null || true
      watcher=
      printf '\r\033[K'
    fi
    if [ "$status" -ne 0 ]; then
      tr '\r' '\n' < "$log" | tail -n 20 >&2
      fail "step $number ended with status $status; its log is $log, and what came before is kept"
    fi
    touch "$out/.done/$name"
    echo "  took $((SECONDS - began)) s"
  fi
  tr '\r' '\n' < "$log" | grep -E "$pattern" | tail -n 8 |
    sed 's/^/  /' | cut -c 1-240 || true
}

heading "Python environment"
environment quickstart
echo "  $(python --version), in $VIRTUAL_ENV; $SECONDS s"

# Two threads wait for each other more than they work on layers this small.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
if has_gpu; then
  config=short hubert=harmonic features=(mfcc chroma) tracks=240 k=500
  steps=12
  echo "  there is a GPU: base models, configs music2vec/short.yaml and music_hubert/harmonic.yaml"
else
  config=tiny hubert=tiny features=(mfcc) tracks=60 k=100
  echo "  no GPU: tiny models on the CPU, configs examples/*/tiny.yaml"
fi
runs="$out/runs"

valid_share=0.05
if [ "$music" = "$out/music" ]; then
  valid_share=0.15 # two of the twelve folders
  step music "Render a corpus: $tracks chorales" ' tracks in ' \
    python examples/open_music/render_scores.py --out "$music" --tracks "$tracks"
else
  heading "Your music: $music"
fi

step manifests "Manifests: which audio trains, which validates" '^(train|valid|left out|warning):' \
  python -m manifests_tools pretrain --root "$music" --out "$out/manifests" \
  --valid-share "$valid_share" --force

label_dirs=
for name in "${features[@]}"; do
  step "labels-$name" "Labels: $name, K-means with $k clusters" 'k = |tracks, |warning|^report' \
    python -m music_ssl_fairseq label --k "$k" --features "$name" --manifests "$out/manifests" \
    --labels "$out/labels/$name" --report
  label_dirs+=${label_dirs:+,}$(quoted "$out/labels/$name")
done

train() { # name title model config override...
  local name=$1 title=$2 model=$3 config=$4
  shift 4
  step "train-$name-$config" "$title" '^(writes to|trained|finished|next|warning)' \
    fairseq-hydra-train --config-dir "examples/$model" --config-name "$config" \
    "task.data=$(quoted "$out/manifests")" "hydra.run.dir=$(quoted "$runs/$config/$model")" "$@"
}

updates=$(sed -n 's/^ *max_update: *//p' "examples/music_hubert/$hubert.yaml")
labels="task.label_dir=[$label_dirs]"

train music2vec "Train music2vec" music2vec "$config"
# Ended at half its way, with the learning rate of the whole way.
train music_hubert-half "Train music_hubert for $((updates / 2)) of $updates updates" music_hubert \
  "$hubert" "$labels" "optimization.max_update=$((updates / 2))" "+lr_scheduler.total_num_update=$updates"
train music_hubert "Resume music_hubert: the same command again, to its end" music_hubert \
  "$hubert" "$labels"

for run in "$config/music2vec" "$hubert/music_hubert"; do
  model=${run#*/}
  step "validate-$model-${run%/*}" "Validate $model" "valid on 'valid' subset \| .*loss" \
    fairseq-validate "$out/manifests" --path "$runs/$run/checkpoints/checkpoint_last.pt" \
    --user-dir "$ROOT/music_ssl_fairseq" --task "${model}_pretraining" --valid-subset valid \
    --batch-size 16 --log-format simple
done

# The middle of each song is enough, and a map of thousands is another matter.
if [ "$(cat "$out"/manifests/*.tsv | wc -l)" -le 1000 ]; then
  step "map-$hubert" "A map of the songs, by music_hubert" '^(map|left out)' \
    python -m music_ssl_fairseq map "$music" --upstream "$runs/$hubert/music_hubert" --seconds 30 \
    --out "$out/song_map.html" --cache "$out/feature_cache"
else
  heading "A map of the songs: left out, there are more than 1,000"
fi

heading "Table and curves"
python examples/plot_training.py "$runs/$config/music2vec" "$runs/$hubert/music_hubert" \
  --out "$out/curves.png" --table | tee "$out/table.md"

cat << EOF

Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. In $out:
  song_map.html           your songs by similarity: open it in a browser, hover and play
  labels/FEATURES/report.html  the units: a map, and what each sounds like
  curves.png              loss, accuracy or spread, learning rate of both models
  table.md                the table above
  manifests/, labels/     which audio, and its units
  runs/CONFIG/MODEL/      hydra_train.log, checkpoints/checkpoint_{best,last}.pt
  logs/                   all that each step said

On your own music:        bash examples/quickstart.sh ~/music   (with QUICKSTART_DIR=another folder)
What is what:             docs/quickstart.md
EOF
