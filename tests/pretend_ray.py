"""A Ray without processes: workers run here, one call at a time, and can be lost at any result."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest


class RayError(Exception):
    """As ``ray.exceptions.RayError``."""


class RayTaskError(RayError):
    """As ``ray.exceptions.RayTaskError``."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Reference:
    """A value, or the error that getting it raises."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error


class _Results:
    """The references of a streaming call."""

    def __init__(self, worker: _Worker, values: Iterator[Any]) -> None:
        self._worker, self._values = worker, values

    def __next__(self) -> _Reference:
        ray = self._worker.ray
        if self._worker.node not in ray.alive:
            return _Reference(error=RayError("the node is gone"))
        try:
            value = next(self._values)
        except StopIteration:
            raise
        except Exception as error:
            return _Reference(error=RayTaskError(error))
        ray.n_results += 1
        if ray.n_results in ray.lose_at:
            ray.alive.discard(self._worker.node)
            return _Reference(error=RayError("the node is gone"))
        return _Reference(pickle.loads(pickle.dumps(value)))


class _Method:
    def __init__(self, worker: _Worker, name: str) -> None:
        self._worker, self._name = worker, name

    def options(self, **_: Any) -> _Method:
        return self

    def remote(self, *arguments: Any) -> Any:
        worker = self._worker
        values = [a.value if isinstance(a, _Reference) else a for a in arguments]
        if self._name == "load":
            worker.ray.loading = worker.node
            try:
                return _Reference(worker.actor.load(*values))
            except Exception as error:
                return _Reference(error=RayTaskError(error))
        copied = pickle.loads(pickle.dumps(values))
        return _Results(worker, getattr(worker.actor, self._name)(*copied))


class _Worker:
    """A handle of an actor."""

    def __init__(self, ray: PretendRay, kind: type, node: str) -> None:
        self.ray, self.actor, self.node = ray, kind(), node

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)


class PretendRay:
    """What ``psvit_core.cluster`` uses of the module ``ray``.

    Args:
        n_nodes: Nodes with one core each.
        lose_at: Numbers of the results at which the node that has just measured one is lost.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, n_nodes: int = 3, lose_at: tuple[int, ...] = ()) -> None:
        self.alive = {f"node {i}" for i in range(n_nodes)}
        self.lose_at, self.n_results, self.n_put, self._started = lose_at, 0, 0, 0
        self.loading = ""

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(len(self.alive))}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": True} for node in self.alive]

    def put(self, value: Any) -> _Reference:
        self.n_put += 1
        return _Reference(pickle.loads(pickle.dumps(value)))

    def get(self, reference: _Reference) -> Any:
        if reference.error:
            raise reference.error
        return reference.value

    def wait(
        self, waiting: list[Any], num_returns: int = 1, timeout: float = 0
    ) -> tuple[list[Any], list[Any]]:
        return waiting[:num_returns], waiting[num_returns:]

    def kill(self, worker: _Worker) -> None:
        pass

    def remote(self, **_: Any) -> Any:
        def make(kind: type) -> SimpleNamespace:
            self._started += 1
            node = sorted(self.alive)[self._started % len(self.alive)]
            return SimpleNamespace(remote=lambda: _Worker(self, kind, node))

        return make

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: self.loading)


def pretend(monkeypatch: pytest.MonkeyPatch, **options: Any) -> PretendRay:
    """Put a pretended Ray in the place of the module; arguments as for ``PretendRay``."""
    ray = PretendRay(**options)
    for module in ("runtime", "actors"):
        monkeypatch.setattr(f"psvit_core.cluster.{module}.load_ray", lambda: ray)
    return ray
