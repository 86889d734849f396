"""The command ``app``: start the browser app with Streamlit, from any directory.

An installed package carries the app in its private folder ``_app``; a checkout has it next to the
package. Either way Streamlit reads the settings that lie beside ``app.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from psvit_core.cli.options import chosen_engine
from psvit_core.cluster.settings import EngineSettings, engine_of, environment_of
from psvit_core.errors import PsvitError
from psvit_core.jobs.devices import DEVICES_ENV, parse_devices

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "_app"
#: Not left to the settings file: it may be overridden by the environment.
_PRIVATE = ("--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false")


def app_script() -> Path:
    """Return the app's entry script.

    Raises:
        PsvitError: If neither the package nor its parent folder contains the app.
    """
    for folder in (_INSTALLED, _PACKAGE.parent):
        if (folder / "app.py").is_file() and (folder / "ui").is_dir():
            return folder / "app.py"
    raise PsvitError(f"{_PACKAGE} contains no app. Install the package again: pip install .")


def app_command(port: int | None = None, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command line that starts the app.

    Args:
        port: Port to listen on; Streamlit's default (8501) when None.
        arguments: Further arguments of ``streamlit run``; they override the app's settings.
    """
    chosen = [] if port is None else ["--server.port", str(port)]
    command = [sys.executable, "-m", "streamlit", "run", str(app_script())]
    return [*command, *_PRIVATE, *chosen, *arguments]


def app_environment(
    environment: Mapping[str, str],
    devices: str | None = None,
    engine: EngineSettings | None = None,
) -> dict[str, str]:
    """Return the environment for the app and for the workers that it starts.

    A package folder named like one of the app's in the current directory must not shadow it, and an
    installed app leaves its folder as it was installed.

    Args:
        environment: The environment of this process.
        devices: The devices of the queue, separated by commas; None: as the environment says.
        engine: Where jobs run: this machine or a Ray cluster; None: as the environment says.

    Raises:
        DeviceError: If these are no devices.
    """
    found = {**environment, "PYTHONSAFEPATH": "1"}
    if devices is not None:
        found[DEVICES_ENV] = ",".join(parse_devices(devices))
    if engine is not None:
        found |= environment_of(engine)
    if app_script().parent == _INSTALLED:
        found["PYTHONDONTWRITEBYTECODE"] = "1"
    return found


def run_app(options: argparse.Namespace) -> NoReturn:
    """Replace this process with the app; it ends with Ctrl-C."""
    command = app_command(options.port, options.streamlit)
    default = engine_of(os.environ)
    engine = chosen_engine(options, default)
    named = options.engine is not None  # overrides the stored choice, also by the default
    changed = engine if named or engine != default else None
    os.execve(command[0], command, app_environment(os.environ, options.devices, changed))
