#!/usr/bin/env bash
# Start deploy/compose, prove that tasks run there, and take it away with its data. Needs Docker with its plugin compose,
# and the image (`make image`).
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

docker_plugin compose
compose=(docker compose --project-name headrace-test --file "$root/deploy/compose/compose.yaml")
trap 'run "${compose[@]}" down --volumes --timeout 40' EXIT
if ! run "${compose[@]}" up --no-build --detach --wait --wait-timeout 240; then
    "${compose[@]}" logs --tail 50 >&2
    fail "the services did not become healthy; their last lines are above"
fi
# In a container of its own, so that it comes over the network like any client.
run "${compose[@]}" run --rm --no-deps --env HEADRACE_PRODUCER_ADDRESS=producer:50051 \
    --env HEADRACE_STATUS_ADDRESS=status:50052 migrate headrace verify --http http://status:8080 --within 120
