"""Texts of a configuration that hold a layer's path (``modules_to_not_convert``), in step with its depth. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from elastic_ir.stacks import Stack


def renamed(config: Any, stacks: Sequence[Stack]) -> Any:
    """Texts and keys that hold a layer's path (``modules_to_not_convert``), once for each of its places."""
    for stack in stacks:
        pattern = re.compile(rf"(?<![\w.]){re.escape(stack.series.head)}([0-9]+)(?=\.|$)")
        places: dict[int, list[int]] = {}
        for at, source in enumerate(stack.order):
            places.setdefault(source, []).append(at)
        for extra in range(stack.tail):
            places[stack.before + extra] = [len(stack.order) + extra]

        def texts(text: str, pattern: re.Pattern[str] = pattern, stack: Stack = stack,
                  places: dict[int, list[int]] = places) -> list[str]:  # fmt: skip
            match = pattern.search(text)
            number = stack.series.number(match[0]) if match else None
            if match is None or number is None or not 0 <= number - stack.base < stack.before + stack.tail:
                return [text]
            return [
                f"{text[: match.start()]}{stack.series.name(at + stack.base)}{text[match.end() :]}"
                for at in places.get(number - stack.base, [])
            ]

        config = _mapped(config, texts)
    return config


def _mapped(item: Any, texts: Callable[[str], list[str]]) -> Any:
    if isinstance(item, dict):
        # a configuration in memory may have numbers for keys, its file has none
        moved = ((key, texts(key) if isinstance(key, str) else [key]) for key in item)
        return {name: _mapped(item[key], texts) for key, names in moved for name in names}
    if isinstance(item, list):
        made: list[Any] = []
        for part in item:
            made += texts(part) if isinstance(part, str) else [_mapped(part, texts)]
        return made
    return item
