"""A small hub on 127.0.0.1: the two calls that fetching a model takes, a repository's files and each file's bytes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

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
    if name.endswith((".safetensors", ".bin")):
        digest = hashlib.sha256(content).hexdigest()
        return {**found, "lfs": {"size": len(content), "sha256": digest, "pointerSize": 100}}
    return {**found, "blobId": _blob(content)}


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(name: str, content: bytes) -> str:
    listed = _listed(name, content)
    return str(listed["lfs"]["sha256"] if "lfs" in listed else listed["blobId"])


@contextmanager
def running() -> Iterator[Hub]:
    """The server, in a thread of this process, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_given: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            span = self.headers.get("Range", "")
            hub.asked.append((self.command, path, span))
            api = path.startswith("/api/models/")
            repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            if repo in hub.refused:
                return self.refuse(*hub.refused[repo])
            if repo not in hub.files:
                return self.refuse(404, "RepoNotFound")
            if api:
                revision = path.partition("/revision/")[2]
                if revision not in ("main", COMMIT):
                    return self.refuse(404, "RevisionNotFound")
                files = [_listed(name, content) for name, content in hub.files[repo].items()]
                text = json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                return None
            _, _, rest = path.partition("/resolve/")
            name = rest.partition("/")[2]
            if name not in hub.files[repo]:
                return self.refuse(404, "EntryNotFound")
            listed = hub.files[repo][name]
            content = hub.served.get(name, listed)
            first, last = 0, len(content) - 1
            if span:
                begin, _, end = span.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end or last), last)
            part = content[first : last + 1]
            self.send_response(206 if span else 200)
            self.send_header("ETag", f'"{_etag(name, listed)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if span:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if body and name in hub.broken:
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(part)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
