#!/usr/bin/env bash
# Fetch what the open tasks are made of from Debian's archive: two soundfonts (123 MB), and music and
# speech (309 MB) that examples/open_music/prepare.sh does not take for training.
#
#   bash examples/open_tasks/fetch.sh OUT
#
# Needs a Debian or Ubuntu machine whose package lists are there (`apt-get update` as root, once).
# Nothing is installed; what is there already is kept. Each package's licences are in
# OUT/PACKAGE/usr/share/doc/PACKAGE/copyright.
set -euo pipefail
# shellcheck source=examples/debian.sh
source "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

[ $# -eq 1 ] || fail "usage: bash $0 OUT"
fetch_packages "$1" csound-soundfont fluid-soundfont-gm davegnukem-data \
  fretsonfire-songs-muldjord fretsonfire-songs-sectoid hyperrogue-music warmux-data \
  wordwarvi-sound zaz-data klettres-data
[ ${#skipped[@]} -eq 0 ] || fail "this release does not have: ${skipped[*]}; Debian 12 does"
