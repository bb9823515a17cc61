"""A Ray cluster of two nodes on this machine, as the tests of Ray use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import ROOT

STORE = 80 << 20
"""Bytes of a node's object store, near Ray's minimum."""


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Two nodes with one core each; the head has none. The test is skipped where Ray is not installed."""
    pytest.importorskip("ray", reason="the package ray is not installed: pip install 'refine[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE},
        )
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=STORE)
        try:
            yield made
        finally:
            made.shutdown()
