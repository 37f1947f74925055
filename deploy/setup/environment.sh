#!/usr/bin/env bash
# Make a virtual environment exactly as its locks say, or notice within milliseconds that it is done.
#
#   environment.sh [--editable] FOLDER LOCK…
#
# A lock whose name starts with "model" is installed without dependencies: that wheel declares a deep-learning
# framework that Headrace does not use. --editable also installs this checkout itself. The stamp in the folder
# depends on the locks, on pyproject.toml, on this script and on where the checkout stands.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"

editable=""
if [ "$1" = "--editable" ]; then
    editable=yes
    shift
fi
folder="$1"
shift
stamp="$folder/.headrace-stamp"

wanted="$( (echo "$root" "$@"; cd "$here/locks" && cat "$@" "$here/environment.sh"; [ -z "$editable" ] || cat "$root/pyproject.toml") | cksum)"
if [ -x "$folder/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

# shellcheck source=deploy/setup/python.sh
. "$here/python.sh"
choose_python

rm -f "$stamp"
if ! "$folder/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    echo "setup: making $folder with $PYTHON ($("$PYTHON" --version))" >&2
    "$PYTHON" -m venv --clear "$folder"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
install=("$folder/bin/python" -m pip install --quiet --require-virtualenv)
for lock in "$@"; do
    echo "setup: installing $lock" >&2
    case "$lock" in
        model*) "${install[@]}" --no-deps --require-hashes -r "$here/locks/$lock" ;;
        *) "${install[@]}" --require-hashes -r "$here/locks/$lock" ;;
    esac
done
if [ -n "$editable" ]; then
    echo "setup: installing this checkout" >&2
    "${install[@]}" --quiet --no-deps --no-build-isolation --editable "$root"
fi
echo "$wanted" >"$stamp"
