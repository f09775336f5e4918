#!/bin/sh
# Build the image with what is there, docker, podman or buildah (or BUILDER):  build.sh NAME [OPTION...]
# BASE_IMAGE names another base (helm/image/base.sh makes one without a registry). OPTIONs go to the builder.
set -eu

cd "$(dirname "$0")/../.."
name=$1
shift
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' fusefs/__init__.py)
revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)

builder=${BUILDER:-}
for program in docker podman buildah; do
    if [ -z "$builder" ] && command -v "$program" > /dev/null; then
        builder=$program
    fi
done
if [ -z "$builder" ]; then
    echo "build.sh: please install docker, podman or buildah" >&2
    exit 1
fi
if [ -n "${BASE_IMAGE:-}" ]; then
    set -- --build-arg "BASE_IMAGE=$BASE_IMAGE" "$@"
fi
echo "building $name with $builder"
exec "$builder" build --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --tag "$name" \
    --file helm/image/Dockerfile "$@" .
