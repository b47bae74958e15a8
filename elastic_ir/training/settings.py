"""Settings: what a training and a search for tickets consist of, as plain data that a study file can hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from elastic_ir.errors import PlanError
from elastic_ir.training.entries import (
    AtLeastOne,
    Count,
    NotNegative,
    Range,
    Share,
    Sparsity,
    check_fields,
    items_of,
    misfit,
    parts_of,
)

_T = TypeVar("_T")
#: Data that are found by these names; all others come from a function of the user.
DATA_KINDS = ("digits", "fashion-mnist", "idx", "cifar10", "cifar100", "images")
_NEAR = 0.005  # how near a level's sparsity has to be to one that is wanted
#: Tickets are compared by weights and scores of 32 bits; the others of Lightning would leave networks in fewer.
Precision: TypeAlias = Literal["32-true", "bf16-mixed", "16-mixed"]
Rates: TypeAlias = Literal["cosine", "step", "constant"]
#: What Lightning logs trainings as; empty for nothing.
Log: TypeAlias = Literal["", "csv", "tensorboard"]
#: A share that leaves something and takes something.
Part: TypeAlias = Annotated[float, Range(0, 1, above=True, below=True), "a share"]


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: its length, its optimizer (SGD with momentum) and what the engine is asked to do for it."""

    steps: AtLeastOne  #: optimizer steps from initialization to the end
    batch_size: AtLeastOne = 128
    lr: NotNegative = 0.1  #: the peak learning rate
    momentum: NotNegative = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    schedule: Rates = "cosine"  #: "cosine" (to zero), "step" (a tenth at each milestone) or "constant"
    milestones: tuple[Share, ...] = (0.5, 0.75)  #: for "step", as shares of the training
    warmup: Count = 0  #: steps over which the learning rate rises linearly from zero
    label_smoothing: Share = 0.0
    augment: bool = False  #: random crops (padded by an eighth) and, for natural images, flips
    precision: Precision = "32-true"  #: as Lightning names it: "32-true", "bf16-mixed", "16-mixed"
    compile: bool = False  #: compile the network with torch.compile
    channels_last: bool = True
    workers: Count = 0  #: processes that read images, where the set is too large for memory

    def __post_init__(self) -> None:
        check_fields(self)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from initialization, as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(self.steps - self.warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.schedule == "step":
            return 0.1 ** sum(step >= share * self.steps for share in self.milestones)
        return 1.0


@dataclasses.dataclass(frozen=True)
class Pruning:
    """Iterative magnitude pruning with rewinding (Frankle et al. 2020, *Linear Mode Connectivity and the Lottery
    Ticket Hypothesis*, algorithm 2): how many levels, and where training rewinds to.
    """

    levels: Count  #: how often a share of the weights is pruned
    rewind: Count = 0  #: the step whose weights every level starts from
    share: Part = 0.2  #: of the remaining weights, pruned at each level
    leave_out: tuple[str, ...] = ()  #: weights, or modules with all below them, that are never pruned

    def __post_init__(self) -> None:
        check_fields(self)

    def sparsity_at(self, level: int) -> float:
        """The share of zeros of the ticket that a level trains: 0 at level 0."""
        return 1.0 - (1.0 - self.share) ** level

    def level_for(self, sparsity: float) -> int:
        """The first level whose ticket is at least so sparse, to within half a percent of the weights.

        Raises PlanError for a sparsity that is not a share below 1, or that 1,000 levels do not reach.
        """
        if why := misfit(Sparsity, sparsity):
            raise PlanError(f"a sparsity of {why}")
        level = next((k for k in range(1_000) if self.sparsity_at(k) >= sparsity - _NEAR), None)
        if level is None:
            raise PlanError(
                f"pruning a share of {self.share:g} a level does not reach {sparsity:g} in 1,000 levels"
            )
        return level

    def miss(self, sparsity: float) -> str:
        """One line about a sparsity that its level misses by more than half a percent; empty for others.

        It names the levels on both sides, and the share nearest to this one that would meet it.
        """
        level = self.level_for(sparsity)
        if abs(self.sparsity_at(level) - sparsity) <= _NEAR + 1e-9:
            return ""
        levels = (level - 1, level)
        around = " and ".join(f"{100 * self.sparsity_at(k):.1f} % at level {k}" for k in levels)
        shares = (1 - (1 - sparsity) ** (1 / k) for k in levels if k)
        share = min(shares, key=lambda one: abs(one - self.share))
        return (
            f"a sparsity of {100 * sparsity:g} % is not met by any level: pruning a share of {self.share:g} gives "
            f"{around}; level {level} is used; share: {share:.4g} would meet it"
        )


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an entry stands, for messages: its file, the line in it, and the entries that lead there."""

    file: str  #: or whatever else the entries are read from
    node: Any = None  #: the entry as PyYAML composes it; None where there is no YAML
    entries: str = ""
    line: int = 0  #: from 1; 0 where it is not known

    def at(self, *keys: str | int) -> Place:
        """The place of an entry below this one, by names in mappings and indices in lists."""
        place = self
        for key in keys:
            value = getattr(place.node, "value", None)
            items = value if isinstance(value, list) else []
            if isinstance(key, int):
                listed = [
                    item for item in items if not isinstance(item, tuple)
                ]  # one entry may stand for a list
                found = [(item, item) for item in listed[key : key + 1]]
                entries = f"{place.entries}[{key}]"
            else:
                found = [pair for pair in items if isinstance(pair, tuple) and pair[0].value == key]
                entries = f"{place.entries}.{key}" if place.entries else key
            name, node = found[0] if found else (None, None)
            line = place.line if name is None else name.start_mark.line + 1
            place = Place(place.file, node, entries, line)
        return place

    def fail(self, what: str, key: str | int = "") -> NoReturn:
        """Raise PlanError about this entry, on the line of its own entry ``key`` if that is given."""
        line = (self.at(key) if key != "" else self).line
        place = self.file + (f" line {line}" if line else "")
        raise PlanError(f"{place}: {self.entries}: {what}" if self.entries else f"{place}: {what}")


def read(kind: type[_T], data: object, where: Place) -> _T:
    """A settings object from a mapping of a study file; PlanError with the place of an entry that does not fit."""
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, Mapping):
        where.fail(f"expected a mapping with entries such as {next(iter(known))}, not {data!r}")
    hints = get_type_hints(kind, include_extras=True)
    given: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            where.fail(f"there is no entry {name!r}; the entries are {', '.join(known)}", name)
        given[name] = _fitted(hints[name], value, where.at(name))
    for name, field in known.items():
        if name not in given and field.default is field.default_factory is dataclasses.MISSING:
            where.fail(f"{name} is missing")
    try:
        return kind(**given)
    except PlanError as error:
        where.fail(str(error))


def _fitted(kind: Any, value: Any, where: Place) -> Any:
    """A value as the type of its field has it; PlanError with its place where it is none."""
    plain, limit, _ = parts_of(kind)
    if isinstance(plain, type) and dataclasses.is_dataclass(plain):
        return read(plain, value, where)
    if get_origin(plain) is dict:
        if not isinstance(value, Mapping):
            where.fail(f"expected a mapping, not {value!r}")
        return {name: _fitted(get_args(plain)[1], item, where.at(name)) for name, item in value.items()}
    if get_origin(plain) is tuple:
        each, items = get_args(plain)[0], items_of(value)
        if limit is not None and len(items) not in limit:
            where.fail("none is given; at least one is wanted")
        listed = isinstance(value, (list, tuple))
        return tuple(
            _fitted(each, item, where.at(index) if listed else where) for index, item in enumerate(items)
        )
    if why := misfit(kind, value):
        where.fail(why)
    return float(value) if plain is float else value
