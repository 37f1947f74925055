# Sourced after common.sh by the scripts that talk to a cluster.

program helm "make chart-tools"
release="${RELEASE:-headrace}"
namespace="${NAMESPACE:-headrace}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

private() { # NAME TEXT: a file in $scratch that nobody else can read
    (umask 077 && printf '%s\n' "$2" >"$scratch/$1")
}

if [ -n "${KUBECONFIG_CONTENT:-}" ]; then
    private kubeconfig "$KUBECONFIG_CONTENT"
    export KUBECONFIG="$scratch/kubeconfig"
    unset KUBECONFIG_CONTENT
fi
