# Sourced by scripts in examples/ that take music, speech or soundfonts from Debian's archive.
# shellcheck shell=bash

fail() {
  echo "error: $*" >&2
  exit 1
}

case "${1:-}" in
  -h | --help) # the comment that the sourcing script begins with
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[1]}"
    exit
    ;;
esac

# fetch_packages OUT PACKAGE...: download the packages and unpack each under OUT in a folder of its
# own, without installing anything. Those that are there are kept. Sets `skipped` to the packages
# that this release does not have.
fetch_packages() {
  local out command package
  for command in apt-get apt-cache dpkg-deb; do
    command -v "$command" > /dev/null || fail "$command is not here: this script takes its files" \
      "from Debian's archive. On another system run it in a container (docker run -v \"\$PWD\":/w" \
      "-w /w debian:bookworm bash -c 'apt-get update && bash $0 $1'), or use music of your own."
  done
  mkdir -p "$1/.packages"
  out=$(cd "$1" && pwd)
  shift
  skipped=()
  for package in "$@"; do
    if [ -d "$out/$package" ]; then
      echo "$package: already here"
    elif [ -z "$(apt-cache policy "$package" 2> /dev/null)" ]; then
      skipped+=("$package")
    else
      echo "$package: fetching"
      unpack_package "$out" "$package" || fail "$package could not be fetched or unpacked: see" \
        "above, and run this again; what is already here is kept"
    fi
  done
  rmdir "$out/.packages" 2> /dev/null || true
  if [ ${#skipped[@]} -eq $# ]; then
    fail "apt knows none of the packages: run \`apt-get update\` as root, then this again"
  fi
}

unpack_package() { # out package: download it and unpack it under out, whole or not at all
  local partial="$1/.packages/$2.partial"
  rm -rf "$partial"
  mkdir -p "$partial"
  # apt drops to the user _apt when run by root, who may not write here: harmless, but noisy.
  (cd "$partial" && apt-get -qq -o APT::Sandbox::User=root download "$2") || return 1
  dpkg-deb -x "$partial"/*.deb "$partial/files" || return 1
  rm "$partial"/*.deb
  unpack_archives "$partial/files" || return 1
  mv "$partial/files" "$1/$2"
  rmdir "$partial"
}

unpack_archives() ( # folder: unpack the zip archives in which games of Quake's kind keep their music
  shopt -s globstar nullglob
  for archive in "$1"/**/*.pk3; do
    python3 -m zipfile -e "$archive" "${archive%.pk3}" || exit 1
    rm "$archive"
  done
)
