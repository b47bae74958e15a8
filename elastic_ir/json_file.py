"""JSON files that come with a model: read whole, but only if they are of a size that such a file has. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LIMIT = 256 << 20  #: bytes of an index, a configuration or a record that are worth reading


def read_json(path: Path) -> Any:
    """What the file says.

    Raises OSError where it cannot be read, ValueError, which says what is wrong, where it is too large or no JSON.
    """
    with path.open("rb") as file:
        # the size is asked for first: a read takes memory for as much as it may return
        text = file.read(min(LIMIT, os.fstat(file.fileno()).st_size) + 1)
    if len(text) > LIMIT:
        raise ValueError(f"it has more than {LIMIT >> 20} MiB, which no such file needs")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
