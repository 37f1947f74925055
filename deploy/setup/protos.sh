#!/usr/bin/env bash
# Lint the protos, and compare them with those of the last release: nothing that a client uses may break.
#
#   protos.sh lint              buf lint
#   protos.sh breaking          buf breaking against proto/released/headrace.binpb
#   protos.sh release-image     write that file from the protos as they are: a part of making a release
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
buf="$root/.venv/bin/buf"
released="$root/proto/released/headrace.binpb"
cd "$root"

case "$1" in
    lint) "$buf" lint proto ;;
    breaking)
        if [ -f "$released" ]; then
            "$buf" breaking proto --against "$released"
        else
            echo "protos: nothing has been released yet, so nothing can break" >&2
        fi
        ;;
    release-image)
        mkdir -p "$(dirname "$released")"
        "$buf" build proto --output "$released"
        ;;
    *)
        echo "usage: protos.sh lint | breaking | release-image" >&2
        exit 2
        ;;
esac
