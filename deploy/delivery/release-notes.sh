#!/usr/bin/env bash
# Print what CHANGELOG.md says of VERSION (headrace.__version__): the lines between its heading and the next one.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

version="${VERSION:-$(code_version)}"
changelog="${CHANGELOG:-$root/CHANGELOG.md}"
notes="$(awk -v version="$version" '
    /^## / { inside = ($2 == version || $2 == "[" version "]"); next }
    inside { print }
' "$changelog")"
[ -n "${notes//[[:space:]]/}" ] || fail "CHANGELOG.md says nothing of $version; give it a heading: ## $version"
printf '%s\n' "$notes" | sed '/./,$!d'
