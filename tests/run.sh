#!/usr/bin/env bash
# Run the tests on three processes, of which one mostly waits for commands that it tests; arguments
# go to pytest.
#
#   bash tests/run.sh [-k frames] [tests/features] ...
#
# Makes .venv in the repository, or uses the environment in $MUSIC_SSL_VENV; never the active one.
set -euo pipefail
# shellcheck source=examples/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../examples/environment.sh"

environment test,quickstart
cd "$ROOT"
# Small tensors: a second thread costs more than it brings.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Neighbouring tests share what their module prepares: worksteal keeps them in one process.
exec python -m pytest -n 3 --dist worksteal "$@"
