# Sourced by the scripts beside it: finds a Python, makes the virtual environment, installs filip_jax.
#
#   PYTHON   the interpreter to use   (default: the newest of 3.13, 3.12, 3.11 that runs)
#   VENV     the virtual environment  (default: .venv in this repository)
#
# install EXTRAS: makes sure that "$VENV" holds filip_jax[EXTRAS]; does nothing where it already does.

# XLA on CPUs allocates its temporaries anew in every step; with huge pages glibc spares the page faults
# (the demo on two cores of an AMD EPYC, 2026-11-21: 313 -> 420 samples/s). Results do not change.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$root/.venv}

make_venv() {
    local candidate candidates=${PYTHON:-python3.13 python3.12 python3.11 python3}
    for candidate in $candidates; do
        # A name on PATH is no proof: pyenv's shims are there for versions that do not run.
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null &&
            "$candidate" -m venv "$VENV" >/dev/null; then
            return
        fi
    done
    echo "filip_jax needs Python 3.11, 3.12 or 3.13 with venv; none of these does: $candidates" >&2
    return 1
}

# The virtual environment is of $PYTHON, if that is set.
check_venv() {
    local version="import sys; print(*sys.version_info[:2], sep='.')" want have
    [ -n "${PYTHON:-}" ] && [ -x "$VENV/bin/python" ] || return 0
    want=$("$PYTHON" -c "$version") && have=$("$VENV/bin/python" -c "$version") || return 0
    [ "$want" = "$have" ] || { echo "$VENV has Python $have, PYTHON=$PYTHON is $want: remove it or set VENV" >&2; return 1; }
}

install() {
    local extras=$1 version missing="" extra
    check_venv || return 1
    # Both say what is to be installed; setup.py and MANIFEST.in only what a wheel and a source distribution hold.
    version=$(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum | cut -d' ' -f1)
    for extra in ${extras//,/ }; do
        [ -e "$VENV/.filip_jax-$version-$extra" ] || missing=$extra
    done
    if [ -z "$missing" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
        echo "filip_jax[$extras] is installed: $("$VENV/bin/python" --version) in $VENV"
        return
    fi
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        make_venv || return 1
    fi
    echo "installing filip_jax[$extras] with $("$VENV/bin/python" --version) into $VENV (about a minute) ..."
    "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --editable "$root[$extras]" || return 1
    for extra in ${extras//,/ }; do
        touch "$VENV/.filip_jax-$version-$extra"
    done
}
