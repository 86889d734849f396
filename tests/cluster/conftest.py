"""A real Ray of three nodes on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from psvit_core.cluster.runtime import load_ray

N_NODES = 3


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Start the first node, which has the driver's object store, and connect to it."""
    ray = load_ray()
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    ray.init(address=found.address, log_to_driver=False, logging_level=logging.ERROR)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def cluster(nodes: Any) -> Any:
    """Return a Ray of three nodes with one core each; a test may remove all but the first."""
    for _ in range(N_NODES - 1 - len(nodes.worker_nodes)):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    return nodes
