#!/usr/bin/env bash
# Fetch freely licensed music from Debian's archive: the soundtracks of free games.
#
#   bash examples/open_music/prepare.sh OUT [small|middle]
#
# small (default)   4 packages,  215 MB, about 6.6 hours of music
# middle           13 packages, 1.1 GB,  about 19 hours
#
# Needs a Debian or Ubuntu machine whose package lists are there (`apt-get update` as root, once).
# Nothing is installed: packages are downloaded to OUT/.packages and unpacked under OUT, one folder
# each. A second run fetches only what is missing. Each package's licences are in
# OUT/PACKAGE/usr/share/doc/PACKAGE/copyright.
set -euo pipefail

SMALL=(warzone2100-music singularity-music wizznic-data colobot-common-sounds)
MIDDLE=("${SMALL[@]}" ufoai-music wesnoth-1.16-music hedgewars-data supertux-data nexuiz-music
  marsshooter-data pushover-data trackballs-data starfighter-data)

fail() {
  echo "error: $*" >&2
  exit 1
}

usage="usage: bash $0 OUT [small|middle]"
[ $# -ge 1 ] && [ $# -le 2 ] || fail "$usage"
case "${2:-small}" in
  small) packages=("${SMALL[@]}") ;;
  middle) packages=("${MIDDLE[@]}") ;;
  *) fail "unknown set '$2'; $usage" ;;
esac
for command in apt-get apt-cache dpkg-deb; do
  command -v "$command" > /dev/null || fail "$command is not here: this script takes its music" \
    "from Debian's archive. On another system run it in a container (docker run -v \"\$PWD\":/w" \
    "-w /w debian:bookworm bash -c 'apt-get update && bash $0 $1'), or use music of your own."
done

mkdir -p "$1/.packages"
out=$(cd "$1" && pwd)

unpack() { # package: download it and unpack it under $out, whole or not at all
  local package=$1 partial="$out/.packages/$1.partial"
  rm -rf "$partial"
  mkdir -p "$partial"
  # apt drops to the user _apt when run by root, who may not write here: harmless, but noisy.
  (cd "$partial" && apt-get -qq -o APT::Sandbox::User=root download "$package") || return 1
  dpkg-deb -x "$partial"/*.deb "$partial/files" || return 1
  rm "$partial"/*.deb
  mv "$partial/files" "$out/$package"
  rmdir "$partial"
}

skipped=()
for package in "${packages[@]}"; do
  if [ -d "$out/$package" ]; then
    echo "$package: already here"
  elif [ -z "$(apt-cache policy "$package" 2> /dev/null)" ]; then
    skipped+=("$package")
  else
    echo "$package: fetching"
    unpack "$package" || fail "$package could not be fetched or unpacked: see above, and run" \
      "this again; what is already here is kept"
  fi
done
rmdir "$out/.packages" 2> /dev/null || true
if [ ${#skipped[@]} -eq ${#packages[@]} ]; then
  fail "apt knows none of the packages: run \`apt-get update\` as root, then this again"
fi
[ ${#skipped[@]} -eq 0 ] || echo "this release does not have: ${skipped[*]}"

cat << EOF

$(du -sh "$out" | cut -f 1) under $out. Next, from the repository root:

  # 16 kHz copies, so that every package has passed the same chain; 20 seconds leave out effects
  python -m manifests_tools pretrain --root "$out" --min-seconds 20 --convert "$out-16k"
  python -m music_ssl_fairseq.label --k 500
  fairseq-hydra-train --config-dir examples/music_hubert --config-name short
EOF
