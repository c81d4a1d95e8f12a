#!/usr/bin/env bash
# Installs the programs that tests start besides Python's: a C compiler, a real Prometheus, promtool,
# Alertmanager, openssl and a browser. Returns at once when they are there. Where it may not install (not root,
# or no apt-get) it names the command; the tests that need them skip there, and fail in CI.
set -euo pipefail

# program=Debian package
needed=(
    cc=build-essential
    prometheus=prometheus
    promtool=prometheus
    prometheus-alertmanager=prometheus-alertmanager
    openssl=openssl
    chromium=chromium
)
policy=/usr/sbin/policy-rc.d

say() { echo "setup: $*" >&2; }

missing() { # the packages whose program is not there
    local pair
    for pair in "${needed[@]}"; do
        command -v "${pair%%=*}" > /dev/null || echo "${pair#*=}"
    done | sort -u
}

packages=$(missing | tr '\n' ' ')
packages=${packages% }
[ -n "$packages" ] || exit 0
install="apt-get install -y --no-install-recommends "$packages
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    say "some tests will skip: they need $packages. On Debian or Ubuntu: sudo $install"
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
    say "that failed, so some tests will skip; try: $install"
fi
