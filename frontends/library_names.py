"""The names of the networks that timm and torchvision have, from their source text: importing them takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

#: What registers a function as a network, with the name where that is not the function's.
_REGISTERED = re.compile(r'@register_model(?:\((?:name="(\w+)")?.*\))?$')
_FUNCTION = re.compile(r"def (\w+)\(")


@functools.cache
def network_names(library: str) -> frozenset[str]:
    """The names that ``timm:`` or ``torchvision:`` takes, without tags; none where the library is not installed."""
    try:
        spec = importlib.util.find_spec(library)
    except (ImportError, ValueError):
        return frozenset()
    if spec is None or spec.origin is None:
        return frozenset()
    found = set()
    for path in Path(spec.origin).parent.joinpath("models").rglob("*.py"):
        registered: re.Match[str] | None = None
        for line in path.read_text("utf-8", errors="replace").split("\n"):
            if line.startswith("@"):
                registered = _REGISTERED.match(line) or registered
            elif registered is not None and (function := _FUNCTION.match(line)):
                found.add(registered[1] or function[1])
                registered = None
    return frozenset(found)
