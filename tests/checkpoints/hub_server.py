"""A small hub on 127.0.0.1: the two calls that fetching a model takes, a repository's files and each file's bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.local_server import Reply, listening

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it was asked for."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  #: by repository and name
    refused: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  #: by repository: status and X-Error-Code
    served: dict[str, bytes] = field(
        default_factory=dict
    )  #: by name, what is sent in place of the file listed
    broken: set[str] = field(default_factory=set)  #: names of files of which half is sent, each time
    asked: list[tuple[str, str, str]] = field(default_factory=list)  #: method, path, range

    def add(self, repo: str, folder: Path) -> None:
        """Hold all files of a folder."""
        self.files[repo] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    @property
    def whole(self) -> list[str]:
        """The files that were asked for without a range, in order."""
        return [
            path.rpartition("/")[2] for method, path, span in self.asked if (method, span) == ("GET", "") and
            "/resolve/" in path
        ]  # fmt: skip


def _listed(name: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": name, "size": len(content)}
    if name.endswith((".safetensors", ".bin", ".gguf")):
        digest = hashlib.sha256(content).hexdigest()
        return {**found, "lfs": {"size": len(content), "sha256": digest, "pointerSize": 100}}
    return {**found, "blobId": _blob(content)}


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(name: str, content: bytes) -> str:
    listed = _listed(name, content)
    return str(listed["lfs"]["sha256"] if "lfs" in listed else listed["blobId"])


def _answered(hub: Hub, path: str) -> Reply:
    repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
    if repo in hub.refused:
        return _refused(*hub.refused[repo])
    if repo not in hub.files:
        return _refused(404, "RepoNotFound")
    if path.startswith("/api/models/"):
        if path.partition("/revision/")[2] not in ("main", COMMIT):
            return _refused(404, "RevisionNotFound")
        files = [_listed(name, content) for name, content in hub.files[repo].items()]
        return Reply(json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode())
    name = path.partition("/resolve/")[2].partition("/")[2]
    if name not in hub.files[repo]:
        return _refused(404, "EntryNotFound")
    listed = hub.files[repo][name]
    headers = {"ETag": f'"{_etag(name, listed)}"', "X-Repo-Commit": COMMIT}
    return Reply(hub.served.get(name, listed), headers=headers, ranged=True, broken=name in hub.broken)


def _refused(status: int, code: str) -> Reply:
    return Reply(status=status, headers={"X-Error-Code": code} if code else {})


@contextmanager
def running() -> Iterator[Hub]:
    """The server, in a thread of this process, until the block ends."""
    hub = Hub()

    def reply(method: str, path: str, span: str) -> Reply:
        hub.asked.append((method, path, span))
        return _answered(hub, path)

    with listening(reply) as url:
        hub.url = url
        yield hub


@contextmanager
def fetched_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub that everything asks, an empty cache, and another working folder, both in a folder."""
    from huggingface_hub import constants

    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    with running() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made
