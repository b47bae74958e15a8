"""The record beside a checkpoint, ``elastic_ir.json``: for each change of depth sources, plan, lineage. No torch.

One step a change, the oldest first. A step's lineage states for each tensor of *its* result where it comes from in
*its* sources; a tensor that has the same name and the same bytes in the first source is left out of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elastic_ir.errors import PlanError, SourceError, reason
from elastic_ir.formats.files import parse_json, read_json
from elastic_ir.formats.model_folder import RECORD
from elastic_ir.safety.limits import allowing_blocks, check_blocks
from elastic_ir.tensors.gathered import Gathering

VERSION = 2  #: 1 where no tensor is gathered
_LAYERS = 100_000  #: more than any network has


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: its name in one of the sources, and what became of it, if anything."""

    name: str
    source: int = 0  #: the number of the source
    #: what it was multiplied by; None where it is a copy, byte for byte; 0 where it is zeros, of either sign
    scale: float | None = None
    gathering: Gathering | None = None  #: which of its entries are taken, where it has one for each layer

    def data(self) -> str | dict[str, Any]:
        """As the file has it: the bare name where nothing else is needed."""
        gathered = self.gathering.data() if self.gathering is not None else None
        given = {"name": self.name, "source": self.source or None, "scale": self.scale, "gathered": gathered}
        fields = {key: value for key, value in given.items() if value is not None}
        return fields if len(fields) > 1 else self.name

    @staticmethod
    def of(data: Any) -> Origin:
        """The origin that :meth:`data` gave; ValueError for anything else."""
        if isinstance(data, str):
            return Origin(data)
        if isinstance(data, Mapping) and isinstance(data.get("name"), str):
            source, scale = data.get("source", 0), data.get("scale")
            numbered = isinstance(source, int) and not isinstance(source, bool) and source >= 0
            if numbered and (scale is None or isinstance(scale, int | float)):
                entries = Gathering.of(data["gathered"]) if "gathered" in data else None
                return Origin(data["name"], source, None if scale is None else float(scale), entries)
        raise ValueError(f"{data!r} is not the origin of a tensor")


@dataclass(frozen=True)
class Step:
    """One change of depth."""

    version: str  #: of ElasticIR
    sources: tuple[str, ...]  #: the names of the folders
    plan: Mapping[str, str]  #: for each stack its source layers in order, as ``--plan`` takes them
    lineage: Mapping[str, Origin] = field(default_factory=dict)  #: what is not a plain copy of its own name
    #: tensors of the first source of which the result has no copy; None where a record does not state them
    gone: tuple[str, ...] | None = None
    computed: tuple[str, ...] = ()  #: tensors of the result that passes computed otherwise; none in folders
    rewired: bool = False  #: whether passes changed more than which layers there are; never in folders
    #: for each source the key that chose its network among several, or nothing; the result is read by the first one
    keys: tuple[str, ...] = ()

    def origin(self, name: str) -> Origin:
        """Where a tensor of the result comes from."""
        return self.lineage.get(name) or Origin(name)

    def layers(self, where: str) -> dict[str, list[tuple[bool, int]]]:
        """For each stack whether each layer is of another source than the first, and its number there.

        SourceError, which says ``where`` the record is, for a plan that is none.
        """
        from elastic_ir.plans.plan import parse_indices

        found: dict[str, list[tuple[bool, int]]] = {}
        for label, text in self.plan.items():
            layers = found.setdefault(label, [])
            for part in text.split(","):
                _, other, indices = part.rpartition("/")
                try:
                    with allowing_blocks(_LAYERS):
                        numbers = parse_indices(indices)
                        check_blocks(len(layers) + len(numbers))
                    layers += [(bool(other), number) for number in numbers]
                except PlanError as error:
                    raise SourceError(
                        f"{RECORD} of {where} is damaged: {text!r} is not a plan ({error})"
                    ) from error
        return found

    def data(self) -> dict[str, Any]:
        """The step as JSON has it."""
        moved = {name: origin.data() for name, origin in self.lineage.items() if origin != Origin(name)}
        gone = {"gone": list(self.gone)} if self.gone is not None else {}
        further = {"computed": list(self.computed), "rewired": self.rewired, "keys": list(self.keys)}
        return {
            "elastic_ir": self.version, "sources": list(self.sources), "plan": dict(self.plan), "lineage": moved,
            **gone, **{key: value for key, value in further.items() if value},
        }  # fmt: skip

    @staticmethod
    def of(data: Any) -> Step:
        """The step that :meth:`data` gave; ValueError for anything else."""
        try:
            sources = tuple(str(name) for name in data["sources"])
            lineage = {str(name): Origin.of(origin) for name, origin in data["lineage"].items()}
            gone = tuple(map(str, data["gone"])) if "gone" in data else None
            step = Step(
                str(data["elastic_ir"]), sources, dict(data["plan"].items()), lineage, gone,
                tuple(map(str, data.get("computed", ()))), bool(data.get("rewired")),
                tuple(map(str, data.get("keys", ()))),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("it is not a step of a record") from error
        if not all(isinstance(text, str) for text in step.plan.values()):
            raise ValueError("its plan is not a table of texts")
        if not sources or any(origin.source >= len(sources) for origin in lineage.values()):
            raise ValueError("its lineage refers to a source that it does not name")
        if len(step.keys) not in (0, len(sources)):
            raise ValueError("it has not one key for each source")
        return step

    def key(self, source: int = 0) -> str | None:
        """The key of a source's network; None where none was needed."""
        return (self.keys[source] if self.keys else "") or None


def key_of(steps: Sequence[Step]) -> str | None:
    """The key of the network in what steps led to; None where none is needed."""
    return steps[-1].key() if steps else None


def gone_from(names: Iterable[str], lineage: Mapping[str, Origin]) -> tuple[str, ...]:
    """Those of the first source's tensors of which a result with that lineage has no copy, in order."""
    kept = {origin.name for origin in lineage.values() if not origin.source and origin.scale is None}
    return tuple(name for name in names if name not in kept)


def read_record(folder: Path) -> list[Step]:
    """The steps that led to a folder, the oldest first; none where there is no record.

    Raises SourceError for a record that is damaged or of a later version.
    """
    path = folder / RECORD
    try:
        return _steps(read_json(path), str(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise SourceError(
            f"{path} is damaged: {error}; without it the folder is read as one of its own"
        ) from error


def steps_of(text: bytes, where: str) -> list[Step]:
    """The steps that a record's text states; SourceError, which says ``where`` it is, as of :func:`read_record`."""
    try:
        return _steps(parse_json(text), where)
    except ValueError as error:
        raise SourceError(f"{where} is damaged: {error}") from error


def _steps(found: Any, where: str) -> list[Step]:
    if isinstance(found, dict) and isinstance(found.get("version"), int) and found["version"] > VERSION:
        raise SourceError(f"{where} was written by a later ElasticIR (version {found['version']})")
    if not isinstance(found, dict) or not isinstance(found.get("history"), list):
        raise ValueError("it holds no history")
    return [Step.of(step) for step in found["history"]]


def record_text(steps: Sequence[Step]) -> str:
    """The file's text."""
    gathered = any(one.gathering is not None for step in steps for one in step.lineage.values())
    data = {"version": VERSION if gathered else 1, "history": [step.data() for step in steps]}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
