#!/usr/bin/env bash
# Run the release's test in its cluster: tasks are submitted, watched and read there. RELEASE, NAMESPACE, TIMEOUT (5m),
# KUBECONFIG_CONTENT as for deploy.sh.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=deploy/delivery/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

run helm test "$release" --namespace "$namespace" --logs --timeout "${TIMEOUT:-5m}"
