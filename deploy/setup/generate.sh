#!/usr/bin/env bash
# Generate headrace/v1 from proto/headrace/v1: into a temporary folder, swapped in whole.
#
#   generate.sh           replace headrace/v1
#   generate.sh --check   compare only; exit 1 when the committed stubs are not what the protos say
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
bash "$here/environment.sh" "$root/.venv-gen" generate.lock

scratch="$(mktemp -d "$root/.generated.XXXXXX")" # on the same file system: the swap is a rename
trap 'rm -rf "$scratch"' EXIT
(
    cd "$root"
    # The plug-in protoc-gen-mypy is found through the PATH.
    PATH="$root/.venv-gen/bin:$PATH" .venv-gen/bin/python -m grpc_tools.protoc --proto_path=proto \
        --python_out="$scratch" --grpc_python_out="$scratch" \
        --mypy_out=quiet:"$scratch" --mypy_grpc_out=quiet:"$scratch" \
        proto/headrace/v1/*.proto
)
cp "$root/headrace/v1/__init__.py" "$scratch/headrace/v1/__init__.py" 2>/dev/null || : >"$scratch/headrace/v1/__init__.py"

if [ "${1:-}" = "--check" ]; then
    if ! diff --recursive --brief --exclude=__pycache__ "$scratch/headrace/v1" "$root/headrace/v1" >&2; then
        echo "check-generated: headrace/v1 is not what proto/ says; run: make generate" >&2
        exit 1
    fi
    exit 0
fi
[ ! -d "$root/headrace/v1" ] || mv "$root/headrace/v1" "$scratch/old"
mv "$scratch/headrace/v1" "$root/headrace/v1"
