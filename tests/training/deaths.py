"""What workers of the tests do in the place of a training; light, since each that dies has to be started again."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def work(spec: Mapping[str, Any], folder: str, threads: int, log: str) -> dict[str, Any]:
    """Do as the spec says: ``die`` or ``leave`` so many times, ``fail``, or ``await`` so many deaths of others."""
    deaths, mine = Path(folder) / "deaths", Path(folder) / spec["key"]
    while _lines(deaths) < spec.get("await", 0):
        time.sleep(0.02)
    _add(mine, "begun")
    if _lines(mine) <= spec.get("leave", 0):
        raise SystemExit(143)
    if _lines(mine) <= spec.get("die", 0):
        _add(deaths, spec["key"])
        os._exit(9)
    if "fail" in spec:
        raise ValueError(spec["fail"])
    return {"process": os.getpid(), "begun": _lines(mine)}


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _add(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")
