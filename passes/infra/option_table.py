"""The options of a pass as a reader sees them: what can be typed, what stands there by default, and what it means.

A field's type says what its text may be, a ``Literal`` which words it may be, and the ``#:`` comment beside it what
the option is for. Options that no text can give (a graph) are not listed.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_ir.choices import words_of
from elastic_ir.passes.infra import Pass, default_of, option_fields

#: What can be typed for each plain type.
_WORDS: dict[Any, str] = {bool: "yes/no", int: "whole number", float: "number", Any: "text"}
_FIELD, _COMMENT = re.compile(r"    (\w+)\s*:"), re.compile(r"#: ?(.*)$")


def option_table(kind: type[Pass]) -> list[tuple[str, str, str, str]]:
    """Name, what can be typed, default and comment of each option of a pass; comments may be empty."""
    hints, comments = typing.get_type_hints(kind), field_comments(kind)
    rows = []
    for field in option_fields(kind):
        words = typed(hints[field.name])
        if words is not None:
            name = field.name.replace("_", "-")
            rows.append((name, words, _default(field), comments.get(field.name, "")))
    return rows


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union, None included, or the one type there is."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def typed(hint: Any) -> str | None:
    """What can be typed for an option of this type, or None where no text can give it.

    >>> typed(int | None), typed(typing.Literal["append", "interpolate"])
    ('whole number', 'append|interpolate')
    """
    kinds = kinds_of(hint)
    text = str in kinds or Any in kinds
    words = ["|".join(chosen)] if (chosen := words_of(hint)) else []
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        inner = (typing.get_args(kind) or (str,))[-1 if origin is Mapping else 0]
        if kind in _WORDS and not (kind is Any and words):
            words.append(_WORDS[kind])
        elif origin in (Sequence, list, tuple):
            words.append("numbers (3,4,6 or 0-2)" if inner is int else "names (a,b)")
        elif origin is Mapping and text:  # the pass reads it from the text
            words.append(f"NAME={'NUMBER' if inner in (int, float) else 'TEXT'},...")
    if not words and str in kinds:
        words = ["text"]
    return " or ".join(words) or None


def _default(field: dataclasses.Field[Any]) -> str:
    """A default as it would be written, the same way as what can be typed."""
    value = default_of(field)
    if value is dataclasses.MISSING or (isinstance(value, (list, tuple)) and not value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def field_comments(kind: type) -> dict[str, str]:
    """The ``#:`` comments of a class's fields, above or behind each; none where its source is not at hand."""
    found: dict[str, list[str]] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            lines = inspect.getsourcelines(base)[0]
        except (OSError, TypeError):
            continue
        field, above = "", list[str]()
        for line in lines:
            if re.match(r"    (def|@)", line):
                break  # the fields stand in front of the methods
            match = _FIELD.match(line)
            if match is not None:
                field = match[1]
                found[field], above = above, []
            comment = _COMMENT.search(line)
            if comment is not None and line.startswith("    #:"):
                above.append(comment[1].strip())
            elif comment is not None and field:
                found[field].append(comment[1].strip())
    return {name: " ".join(parts) for name, parts in found.items()}
