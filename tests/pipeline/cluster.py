"""The real things on loopback: a Ray cluster of two nodes, and an S3 server with faults on demand, Google's too."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

STORE = 80 << 20
"""Bytes of a node's object store, near Ray's minimum."""
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 300}
"""How soon a killed node is noticed: after 5 checks, or 2 s, instead of 15. A slow answer still has 10 s each time."""


@dataclass
class S3:
    """An S3 server of this process, with one bucket, `bucket`.

    It also stands in for Google's XML API, which differs in what refine needs by the name of one header. Source:
    https://cloud.google.com/storage/docs/xml-api/reference-headers#xgoogifgenerationmatch
    """

    folder: Path
    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    slow_every: int = 0
    """Answer every so many requests by SlowDown; 0: none."""
    reset_every: int = 0
    """Close the connection of every so many requests without an answer; 0: none."""
    ignore_conditions: bool = False
    """Ignore If-None-Match, as servers do that do not know conditional writes."""
    deny: str = ""
    """Method that is forbidden."""

    @property
    def env(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "GOOGLE_BASE_URL": f"http://127.0.0.1:{self.port}",
            "GOOGLE_BEARER_TOKEN": "test",
        }

    def well(self) -> None:
        """No more faults."""
        self.slow_every = self.reset_every = 0
        self.ignore_conditions, self.deny = False, ""

    def puts(self, part: str) -> list[str]:
        """The paths of objects that were written and whose name has this part."""
        return [path for method, path in self.requests if method == "PUT" and part in path]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """A server on a free port. The test is skipped where the packages are not installed."""
    pytest.importorskip("obstore", reason="the package obstore is not installed: pip install 'refine[s3]'")
    localbucket = pytest.importorskip("localbucket", reason="the package localbucket is not installed")
    (folder / "bucket").mkdir()
    state = S3(folder)

    class Handler(localbucket.S3Handler):  # type: ignore[name-defined, misc]
        data_root = folder

        def _dispatch(self, action: Any) -> None:
            state.requests.append((self.command, unquote(self.path)))
            if self.headers.get("x-goog-if-generation-match") == "0":
                self.headers["If-None-Match"] = "*"
            number = len(state.requests)
            if state.reset_every and number % state.reset_every == 0:
                self.close_connection = True
                self.connection.close()
            elif state.slow_every and number % state.slow_every == 0:
                self._read_body()
                self._send_error(localbucket.S3Error(HTTPStatus.SERVICE_UNAVAILABLE, "SlowDown", "slow down"))
            elif state.deny == self.command:
                self._read_body()
                self._send_error(localbucket.S3Error(HTTPStatus.FORBIDDEN, "AccessDenied", "no"))
            else:
                if state.ignore_conditions:
                    del self.headers["If-None-Match"]
                super()._dispatch(action)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as in http.server
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing: a client may be killed."""

    server = Server(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def two_nodes(folder: Path, env: dict[str, str]) -> Iterator[Any]:
    """Two nodes with one core and a cache each; the head has no core. Skipped where Ray is not installed."""
    pytest.importorskip("ray", reason="the package ray is not installed: pip install 'refine[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path(), **env}.items():
            patch.setenv(name, value)
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": STORE,
                "_system_config": HEALTH,
            },
        )
        for number in range(2):
            add_node(made, folder / f"node{number}")
        try:
            yield made
        finally:
            made.shutdown()


def add_node(cluster: Any, cache: Path, gpus: int = 0) -> Any:
    """Another node of one core, which keeps its copies of objects in a folder of its own, and says it has GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFINE_CACHE", str(cache))
        return cluster.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=STORE)


def path() -> str:
    """PYTHONPATH with this project."""
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
