#!/usr/bin/env bash
# No file of the repository names a package registry's host: which one is used is each reader's own configuration.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# Brackets keep the patterns from matching themselves.
hosts='py[p]i\.org|pythonhos[t]ed\.org|npm[j]s\.(org|com)|cra[t]es\.io|proxy\.gola[n]g\.org|repo[0-9]?\.mav[e]n\.(org|apache)|deb\.deb[i]an\.org'
if git grep --untracked --exclude-standard -nIE "$hosts" -- .; then
    echo "check-tree: the lines above name a package registry" >&2
    exit 1
fi
