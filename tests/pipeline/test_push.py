"""`refine push`: against a stand-in for the hub on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, call, chat, start

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
API = "/api/datasets/org/chats"


@dataclass
class Hub:
    """What the stand-in keeps: one dataset."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Contents of large files by SHA-256."""
    commits: list[list[str]] = field(default_factory=list)
    private: bool | None = None
    fail_commits: int = 0
    """Refuse every commit after so many; 0: none."""
    status: int = 0
    """Answer every request so; 0: as it should be."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:  # noqa: C901, PLR0911  one address each
        """What the hub answers."""
        if self.status:
            return self.status, {"error": "no"}
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            if self.private is not None:
                return 409, {"error": "exists", "url": f"http://127.0.0.1:{self.port}/datasets/org/chats"}
            asked = json.loads(body)
            self.private = asked.get("private", asked.get("visibility") == "private")
            return 200, {"url": f"http://127.0.0.1:{self.port}/datasets/org/chats"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith(f"{API}/tree/"):
            return 200, [self._entry(name) for name in sorted(self.files)]
        if path.startswith(f"{API}/preupload/"):
            files = [{"path": each["path"], "uploadMode": _mode(each["path"])} for each in json.loads(body)["files"]]
            return 200, {"files": [{**each, "shouldIgnore": False} for each in files]}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self._upload(each) for each in json.loads(body)["objects"]]}
        if path.startswith("/blob/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/blob/")
            self.blobs[path.removeprefix("/blob/")] = body
            return 200, {}
        if path.startswith(f"{API}/commit/"):
            return self._commit([json.loads(line) for line in body.splitlines()])
        if method == "GET" and path.startswith(API):
            return 200, {"id": "org/chats", "private": self.private, "siblings": [], "tags": []}
        return 404, {"error": f"{method} {path}"}

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        more = {"lfs": lfs} if _mode(name) == "lfs" else {}
        return {"type": "file", "path": name, "size": len(content), "oid": oid, **more}

    def _upload(self, each: dict[str, Any]) -> dict[str, Any]:
        href = f"http://127.0.0.1:{self.port}/blob/{each['oid']}"
        return {**each, **({} if each["oid"] in self.blobs else {"actions": {"upload": {"href": href}}})}

    def _commit(self, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        if self.fail_commits and len(self.commits) >= self.fail_commits:
            return 500, {"error": "down"}
        self.commits.append([line["value"]["path"] for line in lines if line["key"] != "header"])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        url = f"http://127.0.0.1:{self.port}/datasets/org/chats/commit/{len(self.commits):040x}"
        return 200, {"success": True, "commitOid": f"{len(self.commits):040x}", "commitUrl": url}


def _mode(name: str) -> str:
    return "lfs" if name.endswith(".parquet") else "regular"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A stand-in on a free port."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer as the stand-in does."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, value = state.answer(self.command, self.path, body)
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815  as in http.server

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as in http.server
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a run of three shards."""
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(chat(i)) for i in range(60)))
    made = call("run", "c.jsonl", "--plan", TOY, "--out", "r", "--shard-rows", 20, "--workers", 1, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    return tmp_path


def push(hub: Hub, place: Path, *more: str, token: str = "t") -> Any:  # noqa: S107  of a stand-in
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return start("push", "r", "org/chats", *more, cwd=place, HF_TOKEN=token, HF_HOME=str(place / "hf"), **env)


def test_a_push_is_a_dry_run_then_private_then_continues(hub: Hub, place: Path) -> None:
    """Nothing is sent without --yes; the card comes last; what is there is not sent again, and old shards go."""
    dry = push(hub, place)
    assert dry.returncode == 0, dry.stderr
    assert "would push to the private dataset org/chats; add --yes" in dry.stdout
    assert (hub.files, hub.private) == ({}, None)

    hub.fail_commits = 1
    broken = push(hub, place, "--yes")
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1].startswith("refine: the hub refused org/chats (")
    assert "README.md" not in hub.files
    hub.fail_commits = 0
    done = push(hub, place, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.private is True
    run = place / "r"
    names = [f"{part}/{i:05}.parquet" for part in ("refined", "rejected") for i in range(3)]
    assert hub.files == {
        name: (run / name).read_bytes() for name in (*names, "plan.toml", "manifest.json", "README.md")
    }
    assert set(json.loads(done.stdout)["sent"]) == {"plan.toml", "manifest.json", "README.md"}  # the others were there

    hub.files["refined/00007.parquet"] = b"of an earlier push"
    again = push(hub, place, "--yes")
    assert "pushed 0 of 9 files" in again.stdout
    assert "removed 1 of an earlier push" in again.stdout
    assert len(hub.files) == 9


def test_what_prevents_a_push_is_one_sentence(hub: Hub, place: Path) -> None:
    """No name, a public dataset, a token that is not known or may not write, no hub."""
    assert "'chats' is no name of a dataset" in call("push", "r", "chats", cwd=place).stderr
    hub.private = False
    assert "org/chats exists and everybody can see it: push with --public" in push(hub, place, "--yes").stderr
    assert hub.files == {}
    for status, why in ((401, "the hub does not know you: set HF_TOKEN"), (403, "your token may not write org/chats")):
        hub.status = status
        assert why in push(hub, place, "--yes").stderr
