#!/bin/sh
# Make sure that the browser tests have a Chromium, and print where it is.
#
# In this order: $PSVIT_CHROMIUM, one on PATH, one that Playwright downloaded before; else install
# one: Debian's package, then Playwright's download. tests/browser.py finds it the same way.
# $PYTHON: an interpreter that has Playwright (default python3).
set -eu

PYTHON=${PYTHON:-python3}

installed() {
    for name in chromium chromium-browser google-chrome; do
        path=$(command -v "$name") && "$path" --version >/dev/null 2>&1 && {
            echo "$path"
            return 0
        }
    done
    "$PYTHON" - 2>/dev/null <<'PY'
from pathlib import Path
from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    path = Path(playwright.chromium.executable_path)
if not path.exists():
    raise SystemExit(1)
print(path)
PY
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        sudo "$@"
    else
        return 1
    fi
}

debian_package() {
    command -v apt-get >/dev/null || return 1
    as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends chromium
}

if [ -n "${PSVIT_CHROMIUM:-}" ]; then
    if [ -x "$PSVIT_CHROMIUM" ]; then
        echo "$PSVIT_CHROMIUM"
        exit 0
    fi
    echo "PSVIT_CHROMIUM=$PSVIT_CHROMIUM is not an executable. Set it to a Chromium, or unset it." >&2
    exit 1
fi

installed && exit 0
echo "No Chromium found; installing one." >&2
debian_package >&2 && installed && exit 0
"$PYTHON" -m playwright install chromium >&2 && installed && exit 0
cat >&2 <<'MESSAGE'
The browser tests need a Chromium, and none could be installed.
Install one (Debian: apt-get install chromium), or name one: export PSVIT_CHROMIUM=/path/to/chromium
MESSAGE
exit 1
