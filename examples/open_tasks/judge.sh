#!/usr/bin/env bash
# What does an encoder know of music? Probe it on the open tasks: key, chords, pitch, instruments,
# beat, tempo, metre and more, from scores rendered here and recordings in Debian's archive.
#
#   bash examples/open_tasks/judge.sh [--small] [--work DIR] [OPTION...] ENCODER...
#
# An encoder is a checkpoint (anything that model.upstream takes), random:CHECKPOINT for the same with
# random weights, mfcc or chroma. Data and results go to DIR (open_tasks); what is there already is
# not made again. --small takes fewer clips, for two CPU cores. Ends with one table, DIR/judge.md:
# figures with intervals, mean ranks, and paired differences. Other options are those of judge.py:
# --tasks A,B  --against ENCODER  --seeds N  --cpu  --jobs N. What the tasks measure: docs/open_tasks.md
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

work=open_tasks small=() rest=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      show_help
      exit
      ;;
    --small) small=(--small) ;;
    --work)
      [ $# -gt 1 ] || fail "--work needs a folder"
      work=$2
      shift
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done
[ ${#rest[@]} -gt 0 ] || fail "name an encoder: see bash $0 --help"
environment probing,quickstart

here="$ROOT/examples/open_tasks"
bash "$here/fetch.sh" "$work/packages" >&2
python "$here/build.py" --out "$work" --packages "$work/packages" "${small[@]}"
python "$here/judge.py" --data "$work/data" --out "$work" "${small[@]}" "${rest[@]}"
