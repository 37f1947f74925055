#!/usr/bin/env bash
# Install what CI's tests need from the system's packages: pgbouncer, prometheus for its promtool, and a postgres that knows
# TLS. Allow programs of ordinary users to make namespaces, in which the tests run the image's files on a read-only root. For
# Debian and Ubuntu; as root, or with sudo.
set -euo pipefail
# shellcheck source=deploy/delivery/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
# Where Debian puts it; not on the PATH of ordinary users.
missing=()
for package in pgbouncer:pgbouncer prometheus:promtool; do
    PATH="$PATH:${SBIN:-/usr/sbin}" command -v "${package#*:}" >/dev/null 2>&1 || missing+=("${package%:*}")
done
compgen -G "${SERVERS:-/usr/lib/postgresql}/*/bin/postgres" >/dev/null || missing+=(postgresql)
if [ "${#missing[@]}" -gt 0 ]; then
    program apt-get "a Debian or an Ubuntu; elsewhere install ${missing[*]} by hand"
    run "${as_root[@]}" apt-get update --quiet
    run "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends "${missing[@]}"
fi
restriction="${APPARMOR_RESTRICTION:-/proc/sys/kernel/apparmor_restrict_unprivileged_userns}"
if [ -e "$restriction" ] && [ "$(cat "$restriction")" != 0 ]; then
    run "${as_root[@]}" sysctl --write kernel.apparmor_restrict_unprivileged_userns=0
fi
