#!/usr/bin/env bash
# Resolve all locks anew: every version and the hashes of all its files, for every Python from 3.11 and every platform.
# The resolver lives in an environment of its own that is thrown away. No lock names a package registry.
# KEEP=1 keeps every version that is locked already: for a dependency that is added or removed.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
# shellcheck source=deploy/setup/python.sh
. "$here/python.sh"
choose_python

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"$PYTHON" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
# Locally found wheels would leave their own hashes, and only theirs, in the locks.
unset PIP_FIND_LINKS UV_FIND_LINKS

resolve() { # LOCK SOURCE OPTION…
    local lock="$1"
    shift
    if [ -n "${KEEP:-}" ]; then
        cp "$here/locks/$lock" "$scratch/$lock"
    fi
    (cd "$root" && "$scratch/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links $([ -n "${KEEP:-}" ] || echo --upgrade) "$@" \
        --output-file "$scratch/$lock")
    if grep -nE '://|^--(index|extra-index|find-links|trusted)' "$scratch/$lock"; then
        echo "lock: $lock names an address; it must not" >&2
        exit 1
    fi
    mv "$scratch/$lock" "$here/locks/$lock"
    echo "lock: $lock, $(grep -c '==' "$here/locks/$lock") packages" >&2
}

resolve all.lock pyproject.toml --extra server --extra stack --extra dev
resolve server.lock pyproject.toml --extra server --constraint deploy/setup/locks/all.lock
resolve build.lock deploy/setup/locks/build.in
resolve model.lock deploy/setup/locks/model.in --no-deps
resolve generate.lock deploy/setup/locks/generate.in
# The oldest of everything that the SDK says it runs with (pyproject.toml, dependencies).
resolve floor.lock pyproject.toml --resolution lowest-direct
# The task queues that bench/peers measures beside Headrace.
resolve peers.lock deploy/setup/locks/peers.in
resolve peers-arq.lock deploy/setup/locks/peers-arq.in
