#!/usr/bin/env bash
# Installs the non-Python programs that tests start: a C compiler, Prometheus, promtool, Alertmanager,
# openssl, a browser, SLURM, shellcheck, ffmpeg, PostgreSQL and Redis, and the books that `make tour` trains on
# (with the argument "tour" only these; with "ui" only Node and npm, which build the dashboard's page).
# Returns at once if all are installed. If it may not install them (not root, or no apt-get), it
# prints the command; the tests that need them are then skipped, and fail in CI.
set -euo pipefail

# program or file=Debian package
needed=(
    cc=build-essential
    prometheus=prometheus
    promtool=prometheus
    prometheus-alertmanager=prometheus-alertmanager
    openssl=openssl
    chromium=chromium
    sbatch=slurm-wlm
    munge=munge
    shellcheck=shellcheck
    ffmpeg=ffmpeg
    pg_ctlcluster=postgresql
    redis-server=redis-server
)
books=()
for language in en de fr ja; do
    books+=("/usr/share/debian-reference/debian-reference.$language.txt.gz=debian-reference-$language")
done
case ${1:-} in
    tour) needed=("${books[@]}") ;;
    ui) needed=(node=nodejs npm=npm) ;;
    *) needed+=("${books[@]}") ;;
esac
policy=/usr/sbin/policy-rc.d

say() { echo "setup: $*" >&2; }

missing() { # prints the packages whose program or file is not installed
    local pair
    for pair in "${needed[@]}"; do
        command -v "${pair%%=*}" > /dev/null || [ -e "${pair%%=*}" ] || echo "${pair#*=}"
    done | sort -u
}

packages=$(missing | tr '\n' ' ')
packages=${packages% }
[ -n "$packages" ] || exit 0
install="apt-get install -y --no-install-recommends "$packages
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    say "some tests will be skipped: they need $packages. On Debian or Ubuntu: sudo $install"
    exit 0
fi

# Tests start the programs themselves; Debian's packages would start them as services.
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
say "installing $packages"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && $install -qq; } > /dev/null; then
    say "the installation failed, so some tests will be skipped; try: $install"
fi
