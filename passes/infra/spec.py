"""Pipelines as text: ``stretch{to-depth=56 order=interpolate},compact``, and options by the types of a pass's fields.

A pass is its name, then its options in braces, KEY=VALUE apart by blanks; a value with blanks or braces is quoted
(after xDSL's pass pipelines). An option's text becomes what its field is declared as.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_ir.choices import either, words_of
from elastic_ir.errors import PlanError
from elastic_ir.passes.infra import Pass, default_of, option_fields

#: A name, and a value: quoted, or everything up to a blank or a brace.
_NAME, _VALUE = r"([A-Za-z][\w-]*)", r"""(?:"([^"]*)"|'([^']*)'|([^\s{}"']+))"""
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclasses.dataclass(frozen=True)
class PassSpec:
    """A pass as it was written: its name and the text of its options; True for one that was only named."""

    name: str
    options: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        options = [
            key if value is True else f"{key}={_quoted(str(value))}" for key, value in self.options.items()
        ]
        return f"{self.name}{{{' '.join(options)}}}"


def _quoted(text: str) -> str:
    if text and not re.search(r"[\s{}\"']", text):
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def parse_pipeline(text: str) -> list[PassSpec]:
    """The passes of a pipeline; PlanError with the place where it cannot be read."""
    reader = _Reader(text)
    specs = []
    while True:
        name = reader.take(_NAME, "the name of a pass")
        options: dict[str, str | bool] = {}
        if reader.skip("{"):
            while not reader.skip("}"):
                key = reader.take(_NAME, "an option or }")
                if key in options:
                    reader.fail(f"{name} is given {key} twice")
                options[key] = reader.take(_VALUE, "a value") if reader.skip("=") else True
        specs.append(PassSpec(name, options))
        if reader.skip("$"):
            return specs
        if not reader.skip(","):
            reader.fail("a comma stands between passes")


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, what: str) -> typing.NoReturn:
        raise PlanError(f"the pipeline {self.text!r} cannot be read at column {self.at + 1}: {what}")

    def skip(self, pattern: str) -> re.Match[str] | None:
        """Pass over blanks and what fits a pattern, if that comes next."""
        match = re.compile(rf"\s*{pattern}").match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return match

    def take(self, pattern: str, what: str) -> str:
        """What fits one of a pattern's groups, which has to come next."""
        match = self.skip(pattern)
        if match is None:
            self.fail(f"{what} is expected")
        return next(group for group in match.groups() if group is not None)


def make_pass(spec: PassSpec, kind: type[Pass]) -> Pass:
    """The pass with its options; PlanError for an option that it has not, or of another type."""
    fields = {field.name.replace("_", "-"): field for field in option_fields(kind)}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, given in spec.options.items():
        name = key.replace("_", "-")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(fields) or "none"
            raise PlanError(f"the pass {spec.name} has no option {key!r}; its options are {known}{hint}")
        field, what = fields[name].name, f"{spec.name}: the option {name}"
        joined = _joined(given, fields)
        if joined and words_of(hints[field]):  # a text of one word: the pass would name it all as a wrong one
            raise PlanError(f"{what} cannot be {given!r}{joined}")
        try:
            values[field] = _convert(given, hints[field], what)
        except PlanError as error:
            raise PlanError(f"{error}{joined}") from error
    missing = [
        name
        for name, field in fields.items()
        if field.name not in values and default_of(field) is dataclasses.MISSING
    ]
    if missing:
        raise PlanError(f"the pass {spec.name} needs the option {missing[0]!r}")
    try:
        return kind(**values)
    except ValueError as error:  # a pass that checks its options when it is made
        raise PlanError(f"{spec.name}: {error}") from error


def _joined(given: str | bool, fields: Mapping[str, object]) -> str:
    """A hint for ``23,order=interpolate``, where a comma stands before the next option; else nothing."""
    found = re.search(r",\s*([A-Za-z][\w-]*)=", str(given))
    if found is None or found[1].replace("_", "-") not in fields:
        return ""
    return f"; options stand apart by blanks, so write a blank before {found[1]}="


def _convert(given: str | bool, hint: Any, what: str) -> Any:
    """An option's text as its declared type, the first of a union that it fits."""
    from elastic_ir.passes.infra.option_table import kinds_of, typed

    kinds = kinds_of(hint)
    if typed(hint) is None:
        raise PlanError(f"{what} is given from Python only, not as text")
    if given is True:
        if bool in kinds:
            return True
        raise PlanError(f"{what} needs a value")
    text = str(given)
    if types.NoneType in kinds and text.lower() == "none":
        return None
    for kind in sorted(kinds, key=lambda kind: kind is str):
        value = _as(text, kind)
        if value is not None:
            return value
    if Any in kinds or str in kinds:
        return text
    expected = [
        word
        for kind in kinds
        if kind is not types.NoneType
        for word in words_of(kind) or (getattr(kind, "__name__", str(kind)),)
    ]
    raise PlanError(f"{what} is {either(expected)}, not {text!r}")


def _as(text: str, kind: Any) -> Any:
    """The value of one type, or None where the text is not of that type."""
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return text if text in typing.get_args(kind) else None
    if kind is bool:
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return None
    if origin in (Sequence, list, tuple) or kind in (list, tuple):
        inner = (typing.get_args(kind) or (str,))[0]
        if inner is int:
            from elastic_ir.plans.plan import parse_indices

            try:
                return parse_indices(text)
            except PlanError:
                return None
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return None
