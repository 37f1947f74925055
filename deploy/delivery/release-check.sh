#!/usr/bin/env bash
# Check that a tag may become a release: the code, the chart and the changelog say the same version. TAG: such as v0.1.0.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

variable TAG "the tag to release, such as v$(code_version)"
[[ "$TAG" =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || fail "the tag $TAG is no version such as v0.1.0"
version="${TAG#v}"

agrees() { # WHERE VALUE
    [ "$2" = "$version" ] || fail "$1 says ${2:-nothing}, the tag says $version; make them agree and tag again"
}
agrees "headrace.__version__" "$(code_version)"
agrees "version of Chart.yaml" "$(chart_value version)"
agrees "appVersion of Chart.yaml" "$(chart_value appVersion)"
VERSION="$version" "$root/deploy/delivery/release-notes.sh" >/dev/null
[ -z "${GITHUB_OUTPUT:-}" ] || echo "version=$version" >>"$GITHUB_OUTPUT"
echo "$TAG agrees with the code, the chart and the changelog"
