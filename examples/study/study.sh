#!/usr/bin/env bash
# The open study: from Debian packages to a table of models and tasks, with intervals.
#
#   bash examples/study/study.sh [--dir DIR] [OPTION...]
#
# Fetches 10 hours of music and of speech (1.4 GB of packages) and the judge's data (430 MB), codes the
# corpora alike, trains and judges every row of rows.yaml, and writes the report. What is in DIR (study)
# already is not made again, so the same command resumes. On a machine without GPUs add --miniature:
# tiny models and few tasks. --hours N makes smaller corpora. Other options are those of study.py:
# --rows A,B  --seeds 1,2  --audio-seconds N  --streams N  --time-limit SECONDS. Times, disk, how to read
# it: docs/study.md
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# shellcheck source=examples/debian.sh
source "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

dir=study hours=10 rest=() small=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      show_help
      exit
      ;;
    --dir | --hours)
      [ $# -gt 1 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --miniature)
      small=(--small)
      rest+=(--miniature)
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done
environment probing,quickstart

here="$ROOT/examples/study" tasks="$ROOT/examples/open_tasks"
corpus() { # kind option...
  local kind=$1
  shift
  [ -e "$dir/$kind/SHA256SUMS" ] && return
  mapfile -t packages < <(sed 's/ *#.*//;/^$/d;s/ .*//' "$here/$kind.txt")
  fetch_packages "$dir/packages" "${packages[@]}"
  [ ${#skipped[@]} -eq 0 ] || fail "this release does not have ${skipped[*]}: Debian 12 has (docker" \
    "run -v \"\$PWD\":/w -w /w debian:bookworm ...), and results of other packages compare with none"
  python "$here/corpus.py" --packages "$dir/packages" --list "$here/$kind.txt" --out "$dir/$kind" \
    --hours "$hours" "$@"
}
corpus music
corpus speech --join
bash "$tasks/fetch.sh" "$dir/judge/packages"
python "$tasks/build.py" --out "$dir/judge" --packages "$dir/judge/packages" "${small[@]}"
status=0
python "$here/study.py" --music "$dir/music" --speech "$dir/speech" --judge "$dir/judge/data" \
  --work "$dir/work" --results "$dir/results" ${rest[@]+"${rest[@]}"} || status=$?
python -m music_ssl_fairseq report --study "$dir/results" --out "$dir/report" > /dev/null
echo "$dir/report/study.md"
exit "$status"
