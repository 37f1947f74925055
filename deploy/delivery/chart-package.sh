#!/usr/bin/env bash
# Check the chart and pack it into dist/. VERSION (that of Chart.yaml) becomes its version and, as appVersion, the
# image's default tag.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

program helm "make chart-tools"
version="${VERSION:-$(chart_value version)}"
[ -n "$version" ] || fail "$chart/Chart.yaml has no version"
mkdir -p "$dist"
# The smallest values that the chart accepts: it wants to be told where its database and its broker are.
run helm lint --strict "$chart" --values "$chart/values-laptop.yaml"
run helm package "$chart" --destination "$dist" --version "$version" --app-version "${VERSION:-$(chart_value appVersion)}"
