#!/usr/bin/env bash
# Make the release on GitHub, with the notes of the changelog and the packed chart. TAG: an existing tag such as v0.1.0.
# GH_TOKEN is read by gh.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

variable TAG "the tag to release, such as v$(code_version)"
program gh "the package of GitHub's command line"
package="$dist/$(chart_value name)-${TAG#v}.tgz"
[ -f "$package" ] || fail "$package is missing; it is made by: make chart-package VERSION=${TAG#v}"
VERSION="${TAG#v}" "$root/deploy/delivery/release-notes.sh" >"$dist/release-notes.md"
options=(--verify-tag --title "Headrace ${TAG#v}" --notes-file "$dist/release-notes.md")
[[ "$TAG" != *-* ]] || options+=(--prerelease)
run gh release create "$TAG" "${options[@]}" "$package"
