"""Which engine measures: this process, or a Ray cluster. No torch, no ray.

The engine is no part of a subject or of a result's key: results are equal, except for the last
digits of trainings and recoveries, which depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from psvit_core.errors import ClusterError, UnknownNameError

ENGINES = ("local", "ray")
ENGINE_ENV = "PSVIT_ENGINE"
ADDRESS_ENV = "PSVIT_RAY_ADDRESS"
GPUS_ENV = "PSVIT_RAY_GPUS"
WORKERS_ENV = "PSVIT_RAY_WORKERS"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What measures, and where.

    Args:
        name: One of ``ENGINES``.
        address: ``HOST:PORT`` of a running cluster, of which this machine is a node; None starts
            Ray on this machine for as long as it is needed.
        gpus: GPUs of one worker on CUDA, also a fraction: with 0.5, two workers share one.
        workers: Workers; None: as many as the cluster's GPUs or CPU cores serve.

    Raises:
        UnknownNameError: If there is no such engine.
        ClusterError: If a number is not possible.
    """

    name: str = "local"
    address: str | None = None
    gpus: float = 1.0
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UnknownNameError("engine", self.name, ENGINES)
        if not (math.isfinite(self.gpus) and self.gpus > 0) or (
            self.gpus > 1 and self.gpus != int(self.gpus)
        ):
            raise ClusterError(
                "A worker has a fraction of a GPU up to 1, or a whole number of them; got "
                f"{self.gpus:g}. Use for example --ray-gpus 0.5."
            )
        if self.workers is not None and self.workers < 1:
            raise ClusterError(
                f"A cluster needs at least 1 worker; got {self.workers}. Omit --ray-workers for as "
                "many as it serves."
            )

    @property
    def is_ray(self) -> bool:
        """Whether a Ray cluster measures."""
        return self.name == "ray"


def engine_of(environment: Mapping[str, str]) -> EngineSettings:
    """Return the engine that the environment names; ``local`` by default.

    Raises:
        UnknownNameError: If there is no such engine.
        ClusterError: If a number cannot be read or is not possible.
    """
    workers = _number(environment, WORKERS_ENV)
    return EngineSettings(
        name=environment.get(ENGINE_ENV) or "local",
        address=environment.get(ADDRESS_ENV) or None,
        gpus=_number(environment, GPUS_ENV) or 1.0,
        workers=int(workers) if workers is not None else None,
    )


def environment_of(settings: EngineSettings) -> dict[str, str]:
    """Return the variables from which ``engine_of`` reads these settings."""
    numbers = {GPUS_ENV: f"{settings.gpus:g}"}
    if settings.workers is not None:
        numbers[WORKERS_ENV] = str(settings.workers)
    address = {ADDRESS_ENV: settings.address} if settings.address else {}
    return {ENGINE_ENV: settings.name, **address, **numbers}


def _number(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name)
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ClusterError(f"{name} is a number; got {text!r}. Unset it, or set 1.") from error
