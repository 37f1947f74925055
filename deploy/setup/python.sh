# Sourced by the set-up scripts: finds a Python that Headrace runs on.
# PYTHON=/path/to/python3 chooses one. Sets the variable PYTHON, or says in one sentence what to install and exits.

python_is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python_makes_environments() {
    # Debian splits these two off into a package of their own.
    "$1" -c 'import venv, ensurepip' >/dev/null 2>&1
}

choose_python() {
    local candidate found="" old="" candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if ! python_is_new_enough "$candidate"; then
            old="$("$candidate" --version 2>&1 || true)"
        elif python_makes_environments "$candidate"; then
            PYTHON="$(command -v "$candidate")"
            return 0
        else
            found="${found:-$candidate}"
        fi
    done
    if [ -n "$found" ]; then
        local version
        version="$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
        echo "setup: $found cannot make virtual environments; install them first, on Debian and Ubuntu with: apt-get install python$version-venv" >&2
    elif [ -n "$old" ]; then
        echo "setup: Headrace needs Python 3.11 or newer and found only $old; install a newer one, or name it: make setup PYTHON=/path/to/python3" >&2
    else
        echo "setup: Headrace needs Python 3.11 or newer and found none; install one, or name it: make setup PYTHON=/path/to/python3" >&2
    fi
    return 1
}
