"""The connection to Ray. Nothing else imports ray, and this does only once a cluster is wanted."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psvit_core.cluster.settings import EngineSettings
from psvit_core.durable import remove_leftovers, temporary_folder
from psvit_core.errors import ClusterError, MissingPackageError

_USAGE_ENV = "RAY_USAGE_STATS_ENABLED"
_LOOPBACK = "127.0.0.1"


def load_ray() -> Any:
    """Import ray, which then reports nothing to its makers.

    Raises:
        MissingPackageError: If ray is not installed.
    """
    os.environ[_USAGE_ENV] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "The engine ray needs the package ray. Install it with pip install "
            "'psvit-explorer[cluster]' or pip install ray."
        ) from error
    return ray


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    return f"{type(error).__name__}: {error!s}".splitlines()[0].removesuffix(": ")


def current_node() -> str:
    """Return the node that this worker runs on."""
    return str(load_ray().get_runtime_context().get_node_id())


@contextmanager
def worker_folder() -> Iterator[Path]:
    """Make a folder for a worker's files; it goes at the end, or after a kill when the next begins.

    Raises:
        ClusterError: If the folder of these folders belongs to another user.
    """
    root = Path(tempfile.gettempdir(), f"psvit-ray-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.lstat().st_uid != os.getuid():
        raise ClusterError(
            f"{root} belongs to another user. Remove it, or set TMPDIR on the nodes of the cluster."
        )
    remove_leftovers(root)  # of workers that were killed
    with temporary_folder(root) as folder:
        yield folder


class Connection:
    """A connection to a cluster, closed at the end unless somebody else has opened it.

    Args:
        settings: The engine.

    Raises:
        MissingPackageError: If ray is not installed.
        ClusterError: If the cluster does not answer, or has nothing to run workers on.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.ray: Any = load_ray()
        self._settings = settings
        self._is_own = not self.ray.is_initialized()
        if self._is_own:
            self._open()

    def _open(self) -> None:
        address = self._settings.address
        # Ray of this machine only listens on loopback: whoever reaches it can run code.
        own = {} if address else {"include_dashboard": False, "_node_ip_address": _LOOPBACK}
        try:
            self.ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                namespace="psvit",
                **own,
            )
        except Exception as error:  # ray has no common class of these
            where = f"The Ray cluster {address}" if address else "Ray on this machine"
            raise ClusterError(
                f"{where} does not answer ({first_line(error)}). Start it with ray start, "
                "or use --engine local."
            ) from error

    def n_workers(self, device: str) -> int:
        """Return how many workers of a device the cluster serves now, or as many as are wanted.

        Raises:
            ClusterError: If it serves none.
        """
        resources = self.ray.cluster_resources()
        if device.startswith("cuda"):
            found = int(resources.get("GPU", 0) / self._settings.gpus + 1e-6)
        else:
            found = int(resources.get("CPU", 0))
        if not found:
            what = f"{self._settings.gpus:g} GPU" if device.startswith("cuda") else "one CPU core"
            raise ClusterError(
                f"The Ray cluster has no {what} for a worker. Add nodes with ray start, or use "
                "--engine local."
            )
        return min(found, self._settings.workers or found)

    def start(self, kind: type, device: str) -> Any:
        """Start a worker: an actor that is not restarted. It waits for its resources if need be."""
        uses = (
            {"num_cpus": 0, "num_gpus": self._settings.gpus}
            if device.startswith("cuda")
            else {"num_cpus": 1}
        )
        return self.ray.remote(max_restarts=0, max_task_retries=0, **uses)(kind).remote()

    def nodes(self) -> set[str]:
        """Return the living nodes."""
        return {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}

    def close(self) -> None:
        """Disconnect; Ray that was started here ends."""
        if self._is_own:
            self.ray.shutdown()
