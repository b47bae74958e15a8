"""What an entry of a study may be, by the type of its field: its check, its words in messages, and its JSON schema.

Types are plain ones, `Literal`, lists, tuples and mappings of such, unions, and dataclasses of settings. `Annotated`
adds a :class:`Range` of numbers, or of the length of a list, and a noun in place of the type's own.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from elastic_ir.choices import either
from elastic_ir.errors import PlanError


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers are admitted; of a list, how many entries."""

    low: float = 0
    high: float = math.inf
    above: bool = False  #: the lowest itself is not admitted
    below: bool = False  #: the highest itself is not admitted

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """As it stands behind a noun: ``from 0 to below 1``."""
        if self.high == math.inf:
            return f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        if self.above and self.below:
            return f"between {self.low:g} and {self.high:g}"
        start = f"from above {self.low:g}" if self.above else f"from {self.low:g}"
        return f"{start} to {'below ' if self.below else ''}{self.high:g}"

    def schema(self) -> dict[str, float]:
        """The keywords of JSON Schema for numbers."""
        low = {"exclusiveMinimum" if self.above else "minimum": self.low}
        high = {"exclusiveMaximum" if self.below else "maximum": self.high}
        return low | (high if self.high < math.inf else {})


Count: TypeAlias = Annotated[int, Range(0)]
AtLeastOne: TypeAlias = Annotated[int, Range(1)]
NotNegative: TypeAlias = Annotated[float, Range(0)]
Share: TypeAlias = Annotated[float, Range(0, 1), "a share"]
Sparsity: TypeAlias = Annotated[float, Range(0, 1, below=True), "a share"]

_NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}


def parts_of(kind: Any) -> tuple[Any, Range | None, str]:
    """A type without its annotations, and those: the range, and the noun (empty where there is none)."""
    if get_origin(kind) is not Annotated:
        return kind, None, ""
    inner, *notes = get_args(kind)
    limit = next((note for note in notes if isinstance(note, Range)), None)
    return inner, limit, next((note for note in notes if isinstance(note, str)), "")


def items_of(value: Any) -> list[Any]:
    """The entries of a list, or the one value that stands for a list of it."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is one of a type."""
    kind, limit, _ = parts_of(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(each, value) for each in args)
    if origin is Literal:
        return value in args
    if origin is list and not isinstance(value, list):
        return False
    if origin in (list, tuple):
        items = items_of(value)
        return (limit is None or len(items) in limit) and all(fits(args[0], item) for item in items)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(args[1], item) for item in value.values())
    if kind is Any:
        return True
    if kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        plain = isinstance(value, wanted) and not isinstance(value, bool)
        return plain and (limit is None or value in limit)
    return isinstance(value, kind)


def words(kind: Any) -> str:
    """What a value of a type is, in words."""
    kind, limit, noun = parts_of(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return either(part for each in args for part in _alternatives(each))
    if origin is Literal:
        return either(_alternatives(kind))
    if origin in (list, tuple):
        return noun or f"a list, each entry {words(args[0])}"
    noun = noun or _NOUNS[origin or kind]
    return f"{noun} {limit}" if limit is not None else noun


def _alternatives(kind: Any) -> list[str]:
    """The words of a ``Literal``, without the empty one, which is a default; of others what they are."""
    return [word for word in get_args(kind) if word] if get_origin(kind) is Literal else [words(kind)]


def misfit(kind: Any, value: Any) -> str:
    """Why a value is not one of a type, in a line; empty where it is one."""
    if fits(kind, value):
        return ""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    shown = f"{value:g}" if is_number else repr(value)
    hint = f"; write {value / 100:g} for {shown} %" if is_number and value > 1 and _share(kind, value) else ""
    return f"{shown} is not {words(kind)}{hint}"


def _share(kind: Any, value: Any) -> bool:
    """Whether a number would be a share if it were percent."""
    _, limit, _ = parts_of(kind)
    return limit is not None and limit.high == 1 and fits(kind, value / 100)


def check_fields(settings: Any) -> None:
    """PlanError for a field of a dataclass whose value is not of its type."""
    for name, kind in get_type_hints(type(settings), include_extras=True).items():
        if why := misfit(kind, getattr(settings, name)):
            raise PlanError(f"{name}: {why}")


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema (2020-12) of what YAML may have for a type."""
    kind, limit, _ = parts_of(kind)
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _object(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(each) for each in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (list, tuple):
        several = {"type": "array", "items": schema_of(args[0]), "minItems": int(limit.low) if limit else 0}
        return {"anyOf": [several["items"], several]} if origin is tuple else several
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(args[1])}
    if kind is Any:
        return {}
    return {"type": _PLAIN[kind], **(limit.schema() if limit else {})}


def _object(kind: Any) -> dict[str, Any]:
    from elastic_ir.passes.infra.option_table import field_comments

    hints, comments = get_type_hints(kind, include_extras=True), field_comments(kind)
    fields = dataclasses.fields(kind)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [
            field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING
        ],
        "properties": {
            field.name: {
                **({"description": comments[field.name]} if comments.get(field.name) else {}),
                **schema_of(hints[field.name]),
            }
            for field in fields
        },
    }
