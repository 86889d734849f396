"""Which Chromium the browser tests run; the same choice as scripts/ensure_chromium.sh."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    """The program to start, or None for the one that Playwright downloaded."""
    if named := os.environ.get("PSVIT_CHROMIUM"):
        if not os.access(named, os.X_OK):
            raise FileNotFoundError(
                f"PSVIT_CHROMIUM={named} is not a program. Name a Chromium or unset it."
            )
        return named
    return next(filter(None, map(shutil.which, NAMES)), None)
