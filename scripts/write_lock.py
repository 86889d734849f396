"""Write ``requirements.lock``: every package that the program needs, exact, with its hash.

Run by ``make lock``. Versions that the file has already are kept; ``make lock ARGS=--upgrade``
takes the newest that ``requirements.txt`` allows. The same versions give the same file.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
TARGET = ("Linux", "x86_64", "CPython", "3.11")  # the wheels are those of this platform
_HEAD = """\
# What requirements.txt resolved to, for CPython 3.11 on Linux x86_64: written by `make lock`.
# Install: pip install --require-hashes -r requirements.lock
# Audit (online): pip-audit -r requirements.lock
"""
_PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def canonical(name: str) -> str:
    """Return a package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(pins: dict[str, str]) -> list[dict[str, Any]]:
    """Return pip's report on the packages that it would install, without installing any.

    Args:
        pins: Versions to keep, by name.

    Raises:
        SystemExit: If pip finds no versions that fit together.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept, report = Path(folder) / "kept.txt", Path(folder) / "report.json"
        kept.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
            *("--only-binary", ":all:", "--report", str(report)),
            *("--requirement", str(ROOT / "requirements.txt"), "--constraint", str(kept)),
        ]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit("No versions fit together. Try: make lock ARGS=--upgrade")
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return found


def lock_text(packages: list[dict[str, Any]]) -> str:
    """Return the content of the file for pip's report."""
    lines = {}
    for package in packages:
        name, version = canonical(package["metadata"]["name"]), package["metadata"]["version"]
        sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines[name] = f"{name}=={version} \\\n    --hash=sha256:{sha256}\n"
    return _HEAD + "".join(lines[name] for name in sorted(lines))


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = parser.parse_args()
    python = ".".join(platform.python_version_tuple()[:2])
    here = (platform.system(), platform.machine(), platform.python_implementation(), python)
    if here != TARGET:
        raise SystemExit(f"The lock is for {' '.join(TARGET)}; this is {' '.join(here)}.")
    old = LOCK.read_text(encoding="utf-8") if LOCK.exists() and not options.upgrade else ""
    text = lock_text(resolve(dict(_PIN.findall(old))))
    LOCK.write_text(text, encoding="utf-8")
    print(f"{LOCK.name}: {len(_PIN.findall(text))} packages")


if __name__ == "__main__":
    main()
