#!/usr/bin/env bash
# Push the packed chart into an OCI registry. CHARTS: where charts are there, without oci://. VERSION: that of Chart.yaml.
# The login is Docker's or Helm's own, made before.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

program helm "make chart-tools"
variable CHARTS "where charts are in the registry, without oci://"
package="$dist/$(chart_value name)-${VERSION:-$(chart_value version)}.tgz"
[ -f "$package" ] || fail "$package is missing; it is made by: make chart-package"
run helm push "$package" "oci://$CHARTS" 2>&1 | tee "$dist/chart-push.log" >&2
digest="$(sed -n 's/^Digest: *\(sha256:[0-9a-f]\{64\}\)$/\1/p' "$dist/chart-push.log")"
[ -n "$digest" ] || fail "helm push printed no digest"
echo "$digest" >"$dist/chart.digest"
echo "oci://$CHARTS/$(chart_value name)@$digest"
