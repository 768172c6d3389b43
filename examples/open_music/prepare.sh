#!/usr/bin/env bash
# Fetch freely licensed music from Debian's archive: the soundtracks of free games.
#
#   bash examples/open_music/prepare.sh OUT [small|middle|large]
#
# small (default)   4 packages,  215 MB, about 6.6 hours of music
# middle           13 packages, 1.1 GB,  about 20 hours
# large            36 packages, 3.0 GB,  about 30 hours
#
# Needs a Debian or Ubuntu machine whose package lists are there (`apt-get update` as root, once).
# Nothing is installed: packages are downloaded to OUT/.packages and unpacked under OUT, one folder
# each. A second run fetches only what is missing. Each package's licences are in
# OUT/PACKAGE/usr/share/doc/PACKAGE/copyright.
set -euo pipefail
# shellcheck source=examples/debian.sh
source "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

SMALL=(warzone2100-music singularity-music wizznic-data colobot-common-sounds)
MIDDLE=("${SMALL[@]}" ufoai-music wesnoth-1.16-music hedgewars-data supertux-data nexuiz-music
  marsshooter-data pushover-data trackballs-data starfighter-data)
LARGE=("${MIDDLE[@]}" naev-data widelands-data freedroidrpg-data drascula-music unknown-horizons
  flare-game openclonk-data fillets-ng-data enigma-data asc-music ardentryst freedink-data
  lordsawar-data adonthell-data frozen-bubble-data xmoto-data miceamaze noiz2sa-data
  neverball-common hex-a-hop-data amoebax-data pinball-table-gnu-data pathological)

usage="usage: bash $0 OUT [small|middle|large]"
[ $# -ge 1 ] && [ $# -le 2 ] || fail "$usage"
case "${2:-small}" in
  small) packages=("${SMALL[@]}") ;;
  middle) packages=("${MIDDLE[@]}") ;;
  large) packages=("${LARGE[@]}") ;;
  *) fail "unknown set '$2'; $usage" ;;
esac
fetch_packages "$1" "${packages[@]}"
out=$(cd "$1" && pwd)
[ ${#skipped[@]} -eq 0 ] || echo "this release does not have: ${skipped[*]}"

cat << EOF

$(du -sh "$out" | cut -f 1) under $out. Next, from the repository root:

  # 16 kHz copies, so that every package has passed the same chain; 20 seconds leave out effects
  python -m manifests_tools pretrain --root "$out" --min-seconds 20 --convert "$out-16k"
  python -m music_ssl_fairseq label --k 500
  fairseq-hydra-train --config-dir examples/music_hubert --config-name short
EOF
