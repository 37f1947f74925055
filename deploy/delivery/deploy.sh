#!/usr/bin/env bash
# Install or upgrade the release in a cluster, and wait until it serves; what does not is rolled back by Helm.
#
#   IMAGE, VERSION     what to run; DIGEST decides over VERSION where it is set
#   VALUES             values file of the chart, such as deploy/helm/headrace/values-production.yaml
#   VALUES_CONTENT     text of another one, which counts more: what only the environment knows. At least one of the two
#   RELEASE            name of the release (headrace)            NAMESPACE   where it is (headrace)
#   TIMEOUT            how long it may take (20m)                KUBECONFIG_CONTENT   text of a kubeconfig; else kubectl's
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=deploy/delivery/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

variable IMAGE "the image's name with its registry, without a tag"
variable VERSION "the image's tag"
values=()
if [ -n "${VALUES:-}" ]; then
    [ -f "$VALUES" ] || fail "VALUES is $VALUES, which is no file"
    values+=(--values "$VALUES")
fi
if [ -n "${VALUES_CONTENT:-}" ]; then
    private values.yaml "$VALUES_CONTENT"
    values+=(--values "$scratch/values.yaml")
fi
[ ${#values[@]} -gt 0 ] || fail "set VALUES or VALUES_CONTENT: the chart must be told where its database and its broker are"
image=(--set-string "image.repository=$IMAGE" --set-string "image.tag=$VERSION")
[ -z "${DIGEST:-}" ] || image+=(--set-string "image.digest=$DIGEST")
run helm upgrade --install "$release" "$chart" --namespace "$namespace" --create-namespace \
    "${values[@]}" "${image[@]}" --atomic --timeout "${TIMEOUT:-20m}" --history-max 10
