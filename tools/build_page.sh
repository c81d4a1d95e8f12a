#!/usr/bin/env bash
# Builds the dashboard's page (moe_megatron/webapp/frontend) into moe_megatron/webapp/page, which wheel and
# sdist take along. Packages are those of package-lock.json; the registry is that of npm's own configuration.
# An argument names another copy of the frontend; its page is built beside it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
oldest_node=20.19

say() { echo "ui: $*" >&2; }

"$root/tools/system_packages.sh" ui
version=$(node --version 2> /dev/null || echo v0)
if [ "$(printf '%s\n' "$oldest_node" "${version#v}" | sort -V | head -n 1)" != "$oldest_node" ] ||
    ! command -v npm > /dev/null; then
    say "building the page needs Node $oldest_node or newer with npm; here is ${version/v0/none}. Install it from" \
        "https://nodejs.org or your package manager, and run this again. Training needs neither."
    exit 1
fi
cd "${1:-$root/moe_megatron/webapp/frontend}"
npm ci --no-fund --no-audit --prefer-offline --loglevel=error
npm run --silent build
