#!/usr/bin/env bash
# Generate the stubs from proto/: into a temporary folder, swapped in whole, one package after the other.
#
#   generate.sh           replace headrace/v1 and status/keda
#   generate.sh --check   compare only; exit 1 when the committed stubs are not what the protos say
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
packages=(headrace/v1 status/keda) # the path under proto/ is the import path
bash "$here/environment.sh" "$root/.venv-gen" generate.lock

scratch="$(mktemp -d "$root/.generated.XXXXXX")" # on the same file system: the swap is a rename
trap 'rm -rf "$scratch"' EXIT
(
    cd "$root"
    protos=()
    for package in "${packages[@]}"; do protos+=("proto/$package"/*.proto); done
    # The plug-in protoc-gen-mypy is found through the PATH.
    PATH="$root/.venv-gen/bin:$PATH" .venv-gen/bin/python -m grpc_tools.protoc --proto_path=proto \
        --python_out="$scratch" --grpc_python_out="$scratch" \
        --mypy_out=quiet:"$scratch" --mypy_grpc_out=quiet:"$scratch" \
        "${protos[@]}"
)

stale=""
for package in "${packages[@]}"; do
    cp "$root/$package/__init__.py" "$scratch/$package/__init__.py" 2>/dev/null || : >"$scratch/$package/__init__.py"
    if [ "${1:-}" = "--check" ]; then
        if ! diff --recursive --brief --exclude=__pycache__ "$scratch/$package" "$root/$package" >&2; then
            echo "check-generated: $package is not what proto/ says; run: make generate" >&2
            stale=yes
        fi
        continue
    fi
    mkdir -p "$scratch/old/$(dirname "$package")"
    [ ! -d "$root/$package" ] || mv "$root/$package" "$scratch/old/$package"
    mv "$scratch/$package" "$root/$package"
done
[ -z "$stale" ]
