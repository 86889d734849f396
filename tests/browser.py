"""Finds the Chromium for browser tests, in the same way as scripts/ensure_chromium.sh."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    """Return the program to start, or None for the one that Playwright downloaded."""
    if named := os.environ.get("PSVIT_CHROMIUM"):
        if not os.access(named, os.X_OK):
            raise FileNotFoundError(
                f"PSVIT_CHROMIUM={named} is not an executable. Set it to a Chromium, or unset it."
            )
        return named
    return next(filter(None, map(shutil.which, NAMES)), None)


FLAGS = [
    "--no-sandbox",  # containers have no user namespaces, and only our own pages are shown
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
