"""Virtual nodes for tests. They end with this process, whatever ends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from mpi.nodes import cluster
from mpi.nodes.cluster import Cluster, NodesError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/nodes" in str(item.path):
            item.add_marker("nodes")


@pytest.fixture(scope="module")
def make_nodes() -> Iterator[Callable[..., Cluster]]:
    """make_nodes(count, **options) -> a new set, ended after the module. Skips where the machine cannot have any."""
    made: list[str] = []

    def make(count: int, **options: object) -> Cluster:
        name = f"test-{os.getpid()}-{len(made)}"
        try:
            found = cluster.up(name, count, tied=True, **options)  # type: ignore[arg-type]
        except (NodesError, PermissionError) as error:
            if os.geteuid() == 0 and "need '" not in str(error):
                raise
            pytest.skip(str(error))
        made.append(name)
        return found

    yield make
    for name in made:
        cluster.down(name)


@pytest.fixture(scope="module")
def two(make_nodes: Callable[..., Cluster]) -> Cluster:
    """Nodes a and b, one core each, links unlimited."""
    return make_nodes(2, cores_per_node=1)
