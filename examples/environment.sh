# Sourced by the scripts in examples/, tests/run.sh and .ci/run: a Python with this package in it.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "error: $*" >&2
  exit 1
}

show_help() { # the comment that the calling script begins with
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[1]}"
}

has_gpu() { # that torch, once it is installed, can use
  python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null
}

quoted() { # path: as hydra takes it, whatever it holds
  if [[ $1 =~ ^[A-Za-z0-9_./-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "${1//\'/\\\'}"
  fi
}

supported() { # python: whether it runs, and is a version that fairseq has wheels for
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2> /dev/null
}

# Print a Python 3.11 or 3.12 of this machine; $PYTHON names one.
find_python() {
  local python
  if [ -n "${PYTHON:-}" ]; then
    supported "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.11 or 3.12"
    command -v "$PYTHON"
    return
  fi
  for python in python3.12 python3.11 python3 python; do
    # A command may be there and not work: pyenv leaves such behind.
    if supported "$python"; then
      command -v "$python"
      return
    fi
  done
  fail "needs Python 3.11 or 3.12, and finds none under python3.12, python3.11, python3 or" \
    "python. Install one (Debian: apt-get install python3 python3-venv; anywhere: uv python" \
    "install 3.12), or name one: PYTHON=/path/to/python3.12"
}

make_venv() { # folder
  local python
  python=$(find_python) || exit 1
  "$python" -m venv "$1" > /dev/null \
    || fail "$python cannot make a virtual environment: install its venv module (Debian: apt-get" \
      "install python3-venv), and run this again"
}

# Put an environment of our own first on PATH: .venv of the repository, or $MUSIC_SSL_VENV. The
# caller's active environment is left as it is.
use_venv() {
  export VIRTUAL_ENV="${MUSIC_SSL_VENV:-$ROOT/.venv}"
  if [ ! -x "$VIRTUAL_ENV/bin/python" ]; then
    echo "making a virtual environment in $VIRTUAL_ENV"
    make_venv "$VIRTUAL_ENV"
  fi
  supported "$VIRTUAL_ENV/bin/python" \
    || fail "$VIRTUAL_ENV has no Python 3.11 or 3.12: remove it, and it is made anew"
  export PATH="$VIRTUAL_ENV/bin:$PATH"
}

# Whether this repository, and what it needs first, can be imported.
importable() {
  python -P - "$ROOT" << 'EOF'
import importlib.util, sys
specs = {name: importlib.util.find_spec(name) for name in ("fairseq", "torch", "music_ssl_fairseq")}
ours = specs["music_ssl_fairseq"]
sys.exit(not (all(specs.values()) and ours.origin.startswith(sys.argv[1])))
EOF
}

# environment EXTRAS: an environment with this repository and those of its extras, installed if
# the same pyproject.toml has not been installed there before.
environment() {
  local stamp state log
  use_venv
  stamp="$VIRTUAL_ENV/.music_ssl_fairseq-$1"
  state="$ROOT $(cksum < "$ROOT/pyproject.toml")"
  if [ "$(cat "$stamp" 2> /dev/null)" = "$state" ] && importable; then
    return
  fi
  echo "installing music_ssl_fairseq[$1] into $VIRTUAL_ENV (with torch: minutes, and 7 GB of disk)"
  log=$(mktemp)
  # An environment made by uv, or whose making was interrupted, has no pip.
  python -m pip --version > /dev/null 2>&1 || python -m ensurepip > "$log" 2>&1 || true
  if ! python -m pip install --disable-pip-version-check -e "${ROOT}[$1]" < /dev/null > "$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "pip could not install the package; all it said is in $log"
  fi
  rm -f "$log"
  echo "$state" > "$stamp"
}
