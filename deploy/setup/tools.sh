#!/usr/bin/env bash
# Build the tools of the chart's tests from their modules, at fixed versions, into .tools: helm, actionlint. Beside them,
# the schemas of other projects' objects, taken from the same source: they are theirs and stay out of this repository.
#
#   tools.sh            build what is missing; without Go it says so and leaves everything out (in CI that is an error)
set -euo pipefail

HELM=helm.sh/helm/v3@v3.19.0
ACTIONLINT=github.com/rhysd/actionlint@v1.7.7
KEDA=github.com/kedacore/keda/v2@v2.18.0
PROMETHEUS_OPERATOR=github.com/prometheus-operator/prometheus-operator@v0.85.0

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
tools="$root/.tools"
stamp="$tools/.stamp"
wanted="$(cksum <"${BASH_SOURCE[0]}")"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
if ! command -v go >/dev/null 2>&1; then
    echo "tools: Go is not installed, so helm is not built and the tests that need it are skipped by name" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
fi

program() { # MODULE@VERSION FOLDER-IN-IT
    echo "tools: building $1" >&2
    (cd "$tools" && GOBIN="$tools/bin" GOFLAGS=-modcacherw go install "${1%@*}/$2@${1#*@}" 2>"$tools/build.log") \
        || { cat "$tools/build.log" >&2; exit 1; }
}

module() { # MODULE@VERSION: print where its source is
    (cd "$tools" && GOFLAGS=-modcacherw go mod download -json "$1") | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p'
}

mkdir -p "$tools/bin" "$tools/schemas"
program "$HELM" cmd/helm
program "$ACTIONLINT" cmd/actionlint
keda="$(module "$KEDA")"
operator="$(module "$PROMETHEUS_OPERATOR")"
install -m 644 "$keda"/config/crd/bases/keda.sh_scaledobjects.yaml "$keda"/config/crd/bases/keda.sh_triggerauthentications.yaml \
    "$keda"/pkg/scalers/externalscaler/externalscaler.proto \
    "$operator"/example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml "$tools/schemas/"
echo "$wanted" >"$stamp"
