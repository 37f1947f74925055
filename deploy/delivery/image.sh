#!/usr/bin/env bash
# Build the image with docker buildx; with PUSH=1 push it, with an SBOM and the provenance attached.
#
#   IMAGE         name without a tag (headrace)                 VERSION    its tag (headrace.__version__)
#   REVISION      commit (HEAD)                                 SOURCE     URL of the repository, for the label
#   MODEL=no      without the embedded model                    PLATFORMS  such as linux/amd64,linux/arm64, with PUSH=1
#   PYTHON_IMAGE  another base image, also by digest            PUSH=1     push; the digest ends up in dist/image.digest
#
# Files get the time of the last commit, and so the same commit gives the same layers.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

docker_plugin buildx
program git "the package git"
cd "$root"

image="${IMAGE:-headrace}"
version="${VERSION:-$(code_version)}"
command=(docker buildx build --file deploy/docker/Dockerfile --tag "$image:$version"
    --build-arg "VERSION=$version" --build-arg "REVISION=${REVISION:-$(git rev-parse HEAD)}"
    --build-arg "SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)")
for name in SOURCE MODEL PYTHON_IMAGE; do
    [ -z "${!name:-}" ] || command+=(--build-arg "$name=${!name}")
done
[ -z "${PLATFORMS:-}" ] || command+=(--platform "$PLATFORMS")

if [ "${PUSH:-}" != 1 ]; then
    # Compose and the chart's default look for the name without a version.
    run "${command[@]}" --tag "$image:latest" --load .
    exit 0
fi
[ "$image" != headrace ] || fail "set IMAGE: the name with its registry, since headrace alone can be pushed nowhere"
mkdir -p "$dist"
run "${command[@]}" --sbom=true --provenance=mode=max --metadata-file "$dist/image.json" \
    --output type=image,push=true,rewrite-timestamp=true .
digest="$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]\{64\}\)".*/\1/p' "$dist/image.json")"
[ -n "$digest" ] || fail "docker buildx wrote no digest into $dist/image.json"
echo "$digest" >"$dist/image.digest"
[ -z "${GITHUB_OUTPUT:-}" ] || echo "digest=$digest" >>"$GITHUB_OUTPUT"
echo "$image:$version@$digest"
