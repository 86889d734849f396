"""Which engine the jobs of a store use: this machine or a Ray cluster. No torch, no ray."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from psvit_core.cluster.settings import (
    ADDRESS_ENV,
    ENGINE_ENV,
    GPUS_ENV,
    WORKERS_ENV,
    EngineSettings,
    engine_of,
)
from psvit_core.errors import ClusterError, PsvitError
from psvit_core.storage.store import Store

_KEY = "settings/engine"


def is_fixed(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether ``PSVIT_ENGINE`` is set, as by ``psvit app --engine``."""
    return bool((os.environ if environment is None else environment).get(ENGINE_ENV))


def fixed_engine() -> dict[str, str]:
    """Return this process's engine variables; none if ``PSVIT_ENGINE`` is not set.

    A job keeps them: the worker that runs it may have been started by another process.
    """
    names = (ENGINE_ENV, ADDRESS_ENV, GPUS_ENV, WORKERS_ENV)
    return {name: os.environ[name] for name in names if name in os.environ} if is_fixed() else {}


def engine_of_jobs(store: Store, environment: Mapping[str, str] | None = None) -> EngineSettings:
    """Return the engine of the next jobs: the environment's, or the one that was chosen.

    Args:
        store: The store of the jobs.
        environment: Variables, such as those of ``fixed_engine``; this process's when None.

    Raises:
        ClusterError: If a number in the environment, or what is stored, cannot be used.
        UnknownNameError: If the environment names an unknown engine.
    """
    environment = os.environ if environment is None else environment
    chosen = store.get(_KEY)
    if is_fixed(environment) or chosen is None:
        return engine_of(environment)
    try:
        return EngineSettings(**chosen)
    except (TypeError, ValueError, PsvitError) as error:
        raise ClusterError(
            "The stored choice of where jobs run cannot be read. Choose again on the page Jobs, or "
            "with psvit jobs engine --engine local."
        ) from error


def choose_engine(store: Store, settings: EngineSettings) -> None:
    """Store the engine of jobs that start from now on and were submitted without ``PSVIT_ENGINE``.

    Raises:
        ClusterError: If the environment decides.
        StoreError: If it cannot be stored.
    """
    if is_fixed():
        raise ClusterError(
            f"{ENGINE_ENV} in the environment of this program decides where jobs run: "
            f"{os.environ[ENGINE_ENV]!r}. Unset it, or start the app without --engine."
        )
    store.put(_KEY, dataclasses.asdict(settings))


def engine_text(settings: EngineSettings) -> str:
    """Return where jobs run, in words."""
    if not settings.is_ray:
        return "this machine"
    return f"the Ray cluster {settings.address}" if settings.address else "Ray on this machine"
