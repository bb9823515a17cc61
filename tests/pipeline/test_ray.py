"""A run on a Ray cluster: the bytes of a run on this machine, whatever dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline import plan as planning
from pipeline import sources
from pipeline.engine import Engine
from pipeline.engine.local import Local
from pipeline.ingest import Limits
from pipeline.run import ActiveRun
from pipeline.store import Store
from tests.conftest import ROOT, chat, contents
from tests.pipeline.cluster import S3, add_node, path

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
SHARDS = 12


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its lease, its lock and its manifest."""
    return {name: content for name, content in contents(folder).items() if not name.startswith(".")}


def carry_out(corpus: Path, out: Path, engine: Engine, tell: Any = lambda *_: None) -> None:
    """A run of the toy plan."""
    active = ActiveRun(Store.at(out), planning.load(TOY), engine, tell, lambda _: None)
    active.carry_out(sources.find(str(corpus)), Limits(rows=10))


class Made(NamedTuple):
    """A corpus, and the files that one process of this machine makes of it."""

    corpus: Path
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Twelve shards of ten conversations, with copies."""
    folder = tmp_path_factory.mktemp("local")
    path = folder / "corpus.jsonl"
    lines = [json.dumps(chat(i // 2 if i % 5 == 0 else i, 2 + i % 4)) for i in range(10 * SHARDS)]
    path.write_text("\n".join(lines), encoding="utf-8")
    carry_out(path, folder / "r", Local(1))
    return Made(path, contents_of(folder / "r"))


class Target(NamedTuple):
    """Where a run goes: its `--out`, and the folder in which its files are."""

    place: Path
    folder: Path


@pytest.fixture
def target(s3: S3, tmp_path: Path) -> Callable[[str], Target]:
    """A new folder, or a new place in the bucket."""
    name = tmp_path.name
    places = {
        "folder": Target(tmp_path / "r", tmp_path / "r"),
        "bucket": Target(Path(f"s3://bucket/{name}"), s3.folder / "bucket" / name),
    }
    return places.__getitem__


@pytest.fixture
def engine(cluster: Any) -> Iterator[Engine]:
    """The engine of the cluster."""
    from pipeline.engine.ray import Ray

    made = Ray(cluster.address)
    yield made
    made.close()


@pytest.mark.parametrize("where", [("Words", "folder"), ("write", "bucket")])
def test_a_node_that_dies_changes_no_byte(
    cluster: Any, engine: Engine, made: Made, target: Callable[[str], Target], where: tuple[str, str]
) -> None:
    """Its raylet is killed while a stage measures, and while shards are written; the other nodes do its work."""
    (step, place), killed = where, list[int]()
    out = target(place)
    node = add_node(cluster, out.folder.parent / "third")
    raylet = node.all_processes["raylet"][0].process

    def tell(name: str, done: int, *_: object) -> None:
        if name.endswith(step) and done and not killed:
            killed.append(raylet.pid)
            os.kill(raylet.pid, signal.SIGKILL)

    try:
        carry_out(made.corpus, out.place, engine, tell)
        assert contents_of(out.folder) == made.files
    finally:
        cluster.remove_node(node, allow_graceful=False)
    assert killed


def test_a_driver_that_is_killed_is_started_again(cluster: Any, s3: S3, made: Made, tmp_path: Path) -> None:
    """The same command resumes: only what was missing is written, and the files are those of an undisturbed run."""
    words = ["run", made.corpus, "--plan", TOY, "--out", "s3://bucket/killed", "--shard-rows", 10, "--engine", "ray"]
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words), "--address", cluster.address]
    env = {**os.environ, "PYTHONPATH": path()}
    driver = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while driver.poll() is None and len(s3.puts("Words")) < SHARDS // 3:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    time.sleep(1)  # Ray ends the driver's workers
    before = set(s3.puts("/signals/"))
    assert not (s3.folder / "bucket" / "killed" / "manifest.json").exists()
    s3.requests.clear()
    again = subprocess.run(command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert contents_of(s3.folder / "bucket" / "killed") == made.files
    assert len(before) >= SHARDS // 3
    assert not before & set(s3.puts("/signals/"))


FIELDS = {
    "spec": "rayClusterSpec entrypoint shutdownAfterJobFinishes backoffLimit submissionMode ttlSecondsAfterFinished",
    "cluster": "headGroupSpec workerGroupSpecs rayVersion",
    "head": "rayStartParams template",
    "worker": "rayStartParams template groupName replicas minReplicas maxReplicas",
}
"""Fields of a `RayJob` that its file may have, as in ray-operator/apis/ray/v1/*_types.go of KubeRay."""


def test_the_cluster_files_of_deploy_are_those_that_ray_and_kuberay_accept() -> None:
    """The first one by Ray's own check; in the other all fields are KubeRay's, and its pods have one image."""
    checks = pytest.importorskip("ray.autoscaler._private.util", reason="the package ray is not installed")
    text = (ROOT / "pipeline" / "deploy.md").read_text(encoding="utf-8")
    launched, job = map(pytest.importorskip("yaml").safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    checks.validate_config(checks.prepare_config(launched))
    assert launched["available_node_types"][launched["head_node_type"]]["resources"] == {"CPU": 0}
    cluster = job["spec"]["rayClusterSpec"]
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for name, part in {"spec": job["spec"], "cluster": cluster, "head": head, "worker": worker}.items():
        assert part.keys() <= set(FIELDS[name].split()), name
    assert head["rayStartParams"] == {"num-cpus": "0"}
    pods = [group["template"]["spec"]["containers"] for group in (head, worker)]
    assert {one["image"] for pod in pods for one in pod} == {launched["docker"]["image"]}
    assert all(one["resources"]["limits"].keys() == {"cpu", "memory"} for pod in pods for one in pod)
