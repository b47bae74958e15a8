"""A server of files on 127.0.0.1 that gives ranges of bytes, and can be told to misbehave."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Behaviour:
    """What the server does, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges = True  #: whether it knows ranges of bytes
        self.lists = True  #: whether it lists folders
        self.broken = 0  #: how many further ranges it breaks off in the middle
        self.short = False  #: whether it gives less than it was asked for
        self.sent: list[tuple[str, int]] = []  #: by path, bytes of bodies
        self.url = ""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Behaviour]:
    """A server of a folder; its URL is in what it yields."""
    behaviour = Behaviour(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_given: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = behaviour.folder / self.path.strip("/")
            kind = "application/octet-stream"
            if path.is_file():
                content = path.read_bytes()
            elif path.is_dir() and behaviour.lists:
                names = (part.name + "/" * part.is_dir() for part in path.iterdir())
                content = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()
                kind = "text/html"
            else:
                self.send_error(404)
                return
            status, whole = 200, len(content)
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if behaviour.ranges and asked:
                begin, _, end = asked.partition("-")
                content = content[int(begin) : int(end) + 1]
                status = 206
                if behaviour.short:
                    content = content[:-1]
            self.send_response(status)
            if behaviour.ranges:
                self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {asked}/{whole}")
            self.send_header("Content-Type", kind)
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not body:
                return
            if behaviour.broken and status == 206:
                behaviour.broken -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
            behaviour.sent.append((self.path, len(content)))
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    behaviour.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
