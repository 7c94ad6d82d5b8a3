# Sourced by the scripts beside it: two ways to speak, and where things are kept.

cache=${XDG_CACHE_HOME:-~/.cache}/flmrec  # shared by all checkouts of one user
python=.venv/bin/python

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# The interpreter that .venv is made from: $PYTHON, or the first Python 3.11 on the path.
python311() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}
