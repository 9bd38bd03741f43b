#!/usr/bin/env bash
# Make or renew a virtual environment from locks: make-env.sh DIRECTORY LOCK...
# A stamp for each lock, of the lock's hash and the Python's version, makes a second call instant.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=$1
shift

die() {
    printf 'make-env: %s\n' "$@" >&2
    exit 1
}

version_of() {
    "$1" -c 'import sys; sys.exit(1) if sys.version_info < (3, 11) else print(*sys.version_info[:3], sep=".")' \
        2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        version_of "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is not a Python of version 3.11 or newer."
        command -v "$PYTHON"
        return
    fi
    # 3.12 and 3.11 first: one of DALiuGE's requirements has no wheels for newer ones and is compiled for minutes.
    for candidate in python3.12 python3.11 python3.13 python3; do
        if version_of "$candidate" >/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die 'no Python of version 3.11 or newer was found.' \
        'Install one (Debian: apt-get install python3 python3-venv python3-dev gcc), or name it: make PYTHON=/path/to/python'
}

check_tools() {
    local python=$1 missing=() name
    name=python$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$name-venv")
    if [[ $directory == *daliuge* ]]; then
        # Two of DALiuGE's requirements have no wheels.
        command -v gcc >/dev/null || command -v cc >/dev/null || missing+=(gcc)
        "$python" -c 'import pathlib, sys, sysconfig as s
sys.exit(not (pathlib.Path(s.get_path("include")) / "Python.h").exists())' || missing+=("$name-dev")
    fi
    if ((${#missing[@]})); then
        die "$directory needs what is not installed. On Debian, as root: apt-get install ${missing[*]}"
    fi
}

stamp_text() {
    printf '%s %s\n' "$(sha256sum <"requirements/$1.lock" | cut -d' ' -f1)" "$("$directory/bin/python" -V 2>&1)"
}

is_fresh() {
    [[ -f $directory/.stamp-$1 && $(cat "$directory/.stamp-$1") == "$(stamp_text "$1")" ]]
}

usable() {
    [[ -x $directory/bin/python ]] && "$directory/bin/python" -m pip --version >/dev/null 2>&1
}

if [[ -x $directory/bin/python ]]; then
    all_fresh=true
    for lock in "$@"; do
        is_fresh "$lock" || all_fresh=false
    done
    if $all_fresh; then
        exit 0
    fi
fi

# Two calls at the same time (make -j, two terminals) would install over each other.
exec 9<requirements
flock 9 2>/dev/null || true

if ! usable; then
    python=$(find_python)
    check_tools "$python"
    printf 'making %s with %s (%s)\n' "$directory" "$python" "$(version_of "$python")"
    rm -rf "$directory"
    "$python" -m venv "$directory"
fi

for lock in "$@"; do
    if is_fresh "$lock"; then
        continue
    fi
    printf 'installing requirements/%s.lock into %s\n' "$lock" "$directory"
    if [[ $lock == daliuge ]]; then
        check_tools "$directory/bin/python"
    fi
    # Sdists are built with their build requirements whatever the age of this pip.
    PIP_USE_PEP517=1 "$directory/bin/python" -m pip install --quiet --no-deps -r "requirements/$lock.lock"
    if [[ $lock == runtime ]]; then
        "$directory/bin/python" -m pip install --quiet --no-deps -e .
    fi
    stamp_text "$lock" >"$directory/.stamp-$lock"
done
