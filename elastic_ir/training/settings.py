"""Settings: what a training and a search for tickets consist of, as plain data that a study file can hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from elastic_ir.errors import PlanError

_T = TypeVar("_T")
#: Data that are found by these names; all others come from a function of the user.
DATA_KINDS = ("digits", "fashion-mnist", "idx", "cifar10", "cifar100", "images")
_NEAR = 0.005  # how near a level's sparsity has to be to one that is wanted
#: Tickets are compared by weights and scores of 32 bits; the others of Lightning would leave networks in fewer.
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: its length, its optimizer (SGD with momentum) and what the engine is asked to do for it."""

    steps: int  #: optimizer steps from initialization to the end
    batch_size: int = 128
    lr: float = 0.1  #: the peak learning rate
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "cosine"  #: "cosine" (to zero), "step" (a tenth at each milestone) or "constant"
    milestones: tuple[float, ...] = (0.5, 0.75)  #: for "step", as shares of the training
    warmup: int = 0  #: steps over which the learning rate rises linearly from zero
    label_smoothing: float = 0.0
    augment: bool = False  #: random crops (padded by an eighth) and, for natural images, flips
    precision: str = "32-true"  #: as Lightning names it: "32-true", "bf16-mixed", "16-mixed"
    compile: bool = False  #: compile the network with torch.compile
    channels_last: bool = True
    workers: int = 0  #: processes that read images, where the set is too large for memory

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise PlanError(
                f"a training needs at least one step and one image a batch, not {self.steps}, {self.batch_size}"
            )
        if self.warmup < 0 or self.workers < 0:
            raise PlanError(f"warmup and workers cannot be negative: {self.warmup}, {self.workers}")
        if self.precision not in _PRECISIONS:
            raise PlanError(
                f"precision is {', '.join(_PRECISIONS)}, not {self.precision!r}; weights stay in 32 bits"
            )
        if self.schedule not in ("cosine", "step", "constant"):
            raise PlanError(f"schedule is cosine, step or constant, not {self.schedule!r}")

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

    levels: int  #: how often a share of the weights is pruned
    rewind: int = 0  #: the step whose weights every level starts from
    share: float = 0.2  #: of the remaining weights, pruned at each level
    leave_out: tuple[str, ...] = ()  #: weights, or modules with all below them, that are never pruned

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise PlanError(f"the share pruned at each level is between 0 and 1, not {self.share}")
        if self.levels < 0 or self.rewind < 0:
            raise PlanError(f"levels and rewind cannot be negative: {self.levels}, {self.rewind}")

    def sparsity_at(self, level: int) -> float:
        """The share of zeros of the ticket that a level trains: 0 at level 0."""
        return 1.0 - (1.0 - self.share) ** level

    def level_for(self, sparsity: float) -> int:
        """The first level whose ticket is at least so sparse, to within half a percent of the weights.

        Raises PlanError for a sparsity that is not a share below 1, or that 1,000 levels do not reach.
        """
        if not 0 <= sparsity < 1:
            hint = f"; write {sparsity / 100:g} for {sparsity:g} %" if 1 < sparsity < 100 else ""
            raise PlanError(f"a sparsity is a share from 0 to below 1, not {sparsity:g}{hint}")
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
                found = [(item, item) for item in items[key : key + 1]]
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


#: What a value that does not fit is not.
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def read(kind: type[_T], data: object, where: Place) -> _T:
    """A settings object from a mapping of a study file; PlanError with the place of an entry that does not fit."""
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, Mapping):
        where.fail(f"expected a mapping with entries such as {next(iter(known))}, not {data!r}")
    hints = get_type_hints(kind)
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


def _fitted(hint: Any, value: Any, where: Place) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return read(hint, value, where)
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            where.fail(f"expected a mapping, not {value!r}")
        return {name: _fitted(get_args(hint)[1], item, where.at(name)) for name, item in value.items()}
    if get_origin(hint) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_fitted(get_args(hint)[0], item, where.at(index)) for index, item in enumerate(items))
    if hint is float and type(value) is int:
        return float(value)
    if hint is not Any and type(value) is not hint:
        where.fail(f"{value!r} is not {_WORDS[hint]}")
    return value
