# Sourced by the scripts of this folder: what they have in common. Each prints what it runs, and fails with one sentence.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
script="$(basename "$0" .sh)"
chart="${CHART:-$root/deploy/helm/headrace}"
dist="${DIST:-$root/dist}"
# helm as `make chart-tools` built it, where the PATH has none.
PATH="$PATH:$root/.tools/bin"

fail() { # SENTENCE
    echo "$script: $1" >&2
    exit 1
}

variable() { # NAME MEANING
    [ -n "${!1:-}" ] || fail "set $1: $2"
}

program() { # NAME HOW-TO-GET-IT
    command -v "$1" >/dev/null 2>&1 || fail "$1 is not installed; get it with: $2"
}

docker_plugin() { # NAME
    program docker "the packages of Docker"
    docker "$1" version >/dev/null 2>&1 || fail "docker has no plugin $1; get it with: the package docker-$1-plugin"
}

run() {
    echo "+ $*" >&2
    "$@"
}

code_version() { # headrace.__version__
    sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/headrace/__init__.py"
}

chart_value() { # KEY: a scalar of Chart.yaml
    [ -f "$chart/Chart.yaml" ] || fail "$chart has no Chart.yaml"
    sed -n "s/^$1: *\"\{0,1\}\([^\"]*\)\"\{0,1\} *$/\1/p" "$chart/Chart.yaml"
}
