#!/bin/sh
# Make a base image out of Debian's packages, where no registry can be reached:  base.sh NAME
# Needs root, mmdebstrap and buildah.
set -eu

name=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mirror=${DEBIAN_MIRROR:-http://deb.debian.org}
# As the slim images have it: nobody reads manuals in there.
mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3 \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/*.log' \
    bookworm "$work/base.tar" \
    "deb $mirror/debian bookworm main" \
    "deb $mirror/debian bookworm-updates main" \
    "deb $mirror/debian-security bookworm-security main"

container=$(buildah from scratch)
buildah add --quiet "$container" "$work/base.tar" / > /dev/null
buildah config --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$name"
