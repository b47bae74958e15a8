"""JSON files that come with a model: read whole, but only if they are of a size that such a file has. No torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elastic_ir.safety.limits import JSON_BYTES, JSON_ENTRIES, JSON_LEVELS, open_plain

#: What may be half of a pair of surrogates, escaped or not.
_HALVES = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_HALVES_IN_BYTES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
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
        found = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_levels(found)
    odd = _HALVES.search(text) if isinstance(text, str) else _HALVES_IN_BYTES.search(text)
    if odd:  # a pair of them is one character, as json writes it
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "it holds half a character (a surrogate), which no file can be written with"
            ) from error
    return found


def _check_levels(found: Any) -> None:
    """ValueError where lists and tables lie deeper in one another than what is read."""
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(JSON_LEVELS):
        parts = (part for item in level for part in (item.values() if isinstance(item, dict) else item))
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")
