"""Networks with random weights from many libraries, and the stages that their code says they have."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections import Counter

from benchmarks.layout_networks.entry import Network, Table


@functools.cache
def tables() -> dict[str, tuple[Network, ...]]:
    """All entries by module of this folder."""
    found = {}
    for name in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        table = getattr(importlib.import_module(f"{__name__}.{name}"), "TABLE", None)
        if isinstance(table, Table):
            found[name] = tuple(table.networks)
    names = Counter(network.name for networks in found.values() for network in networks)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"names that occur twice: {twice}")
    return found


def networks() -> list[Network]:
    """All entries, in the order of the table."""
    return [network for found in tables().values() for network in found]


def find(name: str) -> Network:
    """The entry of that name."""
    return next(network for network in networks() if network.name == name)
