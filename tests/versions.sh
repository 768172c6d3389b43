#!/usr/bin/env bash
# Run the tests with the oldest and with the newest torch that the package takes.
#
#   bash tests/versions.sh [oldest|newest] [-k frames] [tests/features] ...
#
# Each version has an environment of its own in .venvs/ of the repository, or in $MUSIC_SSL_VENVS
# (6 GB each). `newest` is upgraded to what the registry has today; if pip's configuration holds torch
# back, PIP_CONSTRAINT=/dev/null lets go. Without a name both run, one after the other. Further
# arguments go to pytest, such as `-n 1` for one process. The last lines say which versions passed. The
# exit status is 0 if all tests did.
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
}

versions() { # of the environment in $MUSIC_SSL_VENV
  use_venv
  python -c 'import platform; from importlib.metadata import version
names = ("torch", "torchaudio", "numpy", "transformers")
print(f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names), sep=", ")'
}

status=0
summary=
for name in "${names[@]}"; do
  export MUSIC_SSL_VENV="${MUSIC_SSL_VENVS:-$ROOT/.venvs}/$name"
  mkdir -p "$(dirname "$MUSIC_SSL_VENV")"
  # shellcheck disable=SC2086 # several requirements
  (install ${pair[$name]})
  result=passed
  bash "$ROOT/tests/run.sh" "$@" || { result=failed status=1; }
  summary+="$name: $result, with $(versions)"$'\n'
done
printf '\n%s' "$summary"
exit "$status"
