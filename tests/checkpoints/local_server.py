"""A server on 127.0.0.1 that gives files, and ranges of them; what it answers is a function of the request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Reply:
    """What is answered, and how it misbehaves."""

    content: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranged: bool = False  #: whether a range that is asked for is what is sent
    lacking: int = 0  #: bytes that a range is too short
    broken: bool = False  #: whether half of it is sent


@contextlib.contextmanager
def listening(
    reply: Callable[[str, str, str], Reply], sent: Callable[[str, int], None] = lambda path, size: None
) -> Iterator[str]:
    """The server's URL, until the block ends; ``reply`` gets the method, the path and the range, if one is asked for.

    ``sent`` is told the path and the bytes of each body.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_given: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path, span = unquote(urlsplit(self.path).path), self.headers.get("Range", "")
            found = reply(self.command, path, span)
            content, status, headers = found.content, found.status, dict(found.headers)
            if found.ranged:
                headers["Accept-Ranges"] = "bytes"
            if found.ranged and span:
                begin, _, end = span.removeprefix("bytes=").partition("-")
                last = min(int(end or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
                content, status = content[int(begin) : last + 1 - found.lacking], 206
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not body:
                return
            if found.broken:
                content = content[: len(content) // 2]
                self.close_connection = True
            sent(path, len(content))
            with contextlib.suppress(ConnectionError):  # who asked has what it wants
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
