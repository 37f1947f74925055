#!/usr/bin/env bash
# Sign what was pushed, by its digest, with cosign and the identity of the workflow: there is no key to keep.
#
#   sign.sh image     IMAGE, and dist/image.digest of `make image PUSH=1`
#   sign.sh chart     CHARTS, and dist/chart.digest of `make chart-push`
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    image)
        variable IMAGE "the image's name with its registry, without a tag"
        name="$IMAGE"
        pushed_by="make image PUSH=1"
        ;;
    chart)
        variable CHARTS "where charts are in the registry, without oci://"
        name="$CHARTS/$(chart_value name)"
        pushed_by="make chart-push"
        ;;
    *) fail "say what to sign: image or chart" ;;
esac
program cosign "the package of sigstore's cosign"
[ -s "$dist/$1.digest" ] || fail "$dist/$1.digest is missing; it is written by: $pushed_by"
# By digest: a tag may be moved between the push and the signature.
run cosign sign --yes "$name@$(cat "$dist/$1.digest")"
