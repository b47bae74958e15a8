"""JSON files that come with a model: read whole, but only if they are of a size that such a file has. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elastic_ir.limits import JSON_BYTES, JSON_ENTRIES, open_plain

Pairs = Callable[[list[tuple[str, Any]]], Any]


def read_json(path: Path) -> Any:
    """What the file says.

    Raises OSError where it cannot be read, ValueError, which says what is wrong, where it is too large or no JSON,
    SourceError where it is no plain file.
    """
    with open_plain(path) as file:
        # the size is asked for first: a read takes memory for as much as it may return
        text = file.read(min(JSON_BYTES, os.fstat(file.fileno()).st_size) + 1)
    if len(text) > JSON_BYTES:
        raise ValueError(f"it has more than {JSON_BYTES >> 20} MiB, which no such file needs")
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error


def parse_json(text: str | bytes, pairs: Pairs | None = None) -> Any:
    """What a text says; ValueError where it is no JSON, nested too deeply, or of more entries than any honest one.

    The entries are counted by their commas and brackets before anything is made of them; ``pairs`` is json's
    ``object_pairs_hook``.
    """
    entries = (
        sum(map(text.count, (",", "[", "{")))
        if isinstance(text, str)
        else sum(map(text.count, (b",", b"[", b"{")))
    )
    if entries > JSON_ENTRIES:
        raise ValueError(f"it has more than {JSON_ENTRIES:,} entries")
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
