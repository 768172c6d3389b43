#!/usr/bin/env bash
# Run the tests with the oldest and with the newest torch that the package takes.
#
#   bash tests/versions.sh [oldest|newest] [-k frames] [tests/features] ...
#
# Each version has an environment of its own in .venvs/ of the repository, or in $MUSIC_SSL_VENVS
# (6 GB each). `newest` is upgraded to what the registry has today. Without a name both run, one
# after the other. Further arguments go to pytest. The exit status is 0 if all tests passed.
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../examples/environment.sh"

names=(oldest newest)
case "${1:-}" in
  -h | --help)
    show_help
    exit
    ;;
  oldest | newest)
    names=("$1")
    shift
    ;;
esac

declare -A pair=(
  # The oldest in which opening a checkpoint runs no code (compat.py).
  [oldest]="torch==2.10.* torchaudio==2.10.*"
  [newest]="--upgrade torch torchaudio"
)

install() { # requirements...: torch first, so that the package finds it and keeps it
  use_venv
  python -m pip install --disable-pip-version-check --quiet "$@" < /dev/null
  python -c 'from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in ("torch", "torchaudio")), sep=", ")'
}

status=0
for name in "${names[@]}"; do
  export MUSIC_SSL_VENV="${MUSIC_SSL_VENVS:-$ROOT/.venvs}/$name"
  mkdir -p "$(dirname "$MUSIC_SSL_VENV")"
  # shellcheck disable=SC2086 # several requirements
  (install ${pair[$name]})
  bash "$ROOT/tests/run.sh" "$@" || status=1
done
exit "$status"
