"""A server of a folder that gives ranges of bytes, and can be told to misbehave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.checkpoints.local_server import Reply, listening


class Behaviour:
    """What the server does, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges = True  #: whether it knows ranges of bytes
        self.lists = True  #: whether it lists folders
        self.broken = 0  #: how many further ranges it breaks off in the middle
        self.cut = 0  #: how many further whole files it breaks off in the middle
        self.short = False  #: whether it gives less than it was asked for
        self.statuses: dict[
            str, list[int]
        ] = {}  #: by the end of a path, what is answered to the next requests
        self.sent: list[tuple[str, int]] = []  #: by path, bytes of bodies
        self.url = ""

    def reply(self, method: str, asked: str, span: str) -> Reply:
        path = self.folder / asked.strip("/")
        if path.is_dir() and self.lists:
            names = (part.name + "/" * part.is_dir() for part in path.iterdir())
            listing = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()
            return Reply(listing, headers={"Content-Type": "text/html"})
        for end, left in self.statuses.items():
            if asked.endswith(end) and left:
                return Reply(status=left.pop(0))
        if not path.is_file():
            return Reply(status=404)
        broken, ranged = False, bool(self.ranges and span)
        if method == "GET" and ranged and self.broken:
            self.broken -= 1
            broken = True
        if method == "GET" and not ranged and self.cut:
            self.cut -= 1
            broken = True
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{path.stat().st_mtime_ns}"'}
        return Reply(
            path.read_bytes(), headers=headers, ranged=self.ranges, lacking=self.short, broken=broken
        )


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Behaviour]:
    """A server of a folder; its URL is in what it yields."""
    behaviour = Behaviour(folder)
    with listening(behaviour.reply, lambda path, size: behaviour.sent.append((path, size))) as url:
        behaviour.url = url
        yield behaviour
