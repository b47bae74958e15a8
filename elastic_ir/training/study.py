"""A study: one YAML file that says which networks, data, methods, sparsities and seeds are compared.

It is read into settings, and those into runs: each run is one number of one seed, with the job that finds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.training.jobs import SPARSITY, Job
from elastic_ir.training.settings import Pruning, Training, read

#: What a study can compare, and whether each needs the target's own ticket for its sparsity.
METHODS = (
    "imp", "dense", "transform", "hybrid", "magnitude", "random", "reinit", "snip", "grasp", "synflow", "rigl", "dpf",
)  # fmt: skip
#: What may be done to a ticket so that it trains better; see :mod:`elastic_ir.training.tweaks`.
TWEAKS = ("ghost-skips", "ghost-softness", "layerwise-rescale", "label-smoothing", "soft-labels")
_FROM_SOURCE = ("transform", "hybrid")
_WITHOUT_MASKS = ("imp", "dense", "transform")  # what there is at sparsity 0, too
_DYNAMIC = ("rigl", "dpf")
#: The options of each method; those of RigL and DPF are their callbacks' (:mod:`.dynamic_callbacks`).
_OPTIONS: dict[str, tuple[str, ...]] = {
    "transform": ("order", "replicate", "drop", "permute_copies"),
    "hybrid": ("order", "replicate", "drop"),
    "rigl": ("distribution", "interval", "drop_fraction", "end"),
    "dpf": ("interval", "initial", "start", "end"),
}
#: What a transformation does unless told; said or not, the job is the same.
_USUAL = {"order": "append", "drop": "tail", "permute_copies": False}
_DATA: dict[str, type] = {"name": str, "channels": int, "limit": int}
_MEASURES = ("accuracy", "barrier")
_UNDER_TICKETS = (
    "imp",
    "random",
    "reinit",
)  # they use the masks of the target's own ticket; others its sparsity alone


@dataclass(frozen=True)
class Entry:
    """One line of a study's comparison."""

    method: str
    label: str = ""  #: how it is called in tables and plots; ``{source}`` stands for the source network
    targets: tuple[str, ...] = ()  #: target networks; all of the study without it
    sources: tuple[
        str, ...
    ] = ()  #: for transformations: the networks whose tickets are transformed; all without it
    sparsities: tuple[float, ...] = ()  #: those of the study without it
    options: dict[str, Any] = field(
        default_factory=dict
    )  #: what the method takes (order, replicate, drop, ...)
    tweaks: tuple[str, ...] = ()  #: names of :data:`TWEAKS`, applied together
    connect: bool = False  #: train it twice in different orders, and measure the barrier between the two

    def name(self, source: str = "") -> str:
        """The label, or one that says all in which the entry differs from its method alone."""
        label = self.label
        if not label:
            label = f"{self.method} from {{source}}" if self.method in _FROM_SOURCE else self.method
            parts = [f"{key} {value}" for key, value in self.options.items()] + list(self.tweaks)
            label = ", ".join([label, *parts, *(["line"] if self.connect else [])])
        return label.replace("{source}", source)


@dataclass(frozen=True)
class Claim:
    """A statement to be answered: on a network at a sparsity, one method is better than another by a margin."""

    text: str
    better: str  #: labels
    than: str
    targets: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()
    margin: float = 0.0  #: in points; negative: "at most so much worse"
    measure: str = (
        "accuracy"  #: or "barrier", where both were trained twice (``connect``): the lower one is better
    )


@dataclass(frozen=True)
class Study:
    """All that a study file says."""

    name: str
    data: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    training: Training
    pruning: Pruning
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    claims: tuple[Claim, ...] = ()
    loss: str = ""
    title: str = ""
    dense_at_least: float = 0.0  #: accuracy that the dense network must reach, or claims stay undecided

    @property
    def wanted(self) -> list[float]:
        """The sparsities as levels meet them, which is how runs name them."""
        pruning = self.pruning
        return sorted({round(pruning.sparsity_at(pruning.level_for(s)), 4) for s in self.sparsities})


@dataclass(frozen=True)
class Run:
    """One number of one seed: where it belongs in a table, and the job that finds it."""

    network: str
    label: str
    method: str
    sparsity: float  #: as wanted; what was reached is in the job's result
    seed: int
    job: Job


def read_study(path: str | os.PathLike[str]) -> Study:
    """A study from its YAML file; SourceError where it cannot be read, PlanError for what is wrong in it."""
    try:
        import yaml
    except ImportError as error:
        raise SourceError("studies are YAML files: pip install PyYAML") from error
    try:
        found = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, Mapping):
        raise PlanError(f"{path}: a study is a mapping with name, data, networks, training, pruning, ...")
    return _study(found, str(path))


def _study(found: Mapping[str, Any], where: str) -> Study:
    def part(name: str, kind: type, default: Any = None) -> Any:
        value = found.get(name, default)
        if value is None:
            raise PlanError(f"{where}: {name} is missing")
        if not isinstance(value, kind):
            raise PlanError(f"{where}: {name} is a {'mapping' if kind is dict else 'list'}, not {value!r}")
        return value

    known = {"name", "title", "data", "networks", "training", "pruning", "sparsities", "seeds", "compare", "claims",
             "loss", "dense_at_least"}  # fmt: skip
    for name in found:
        if name not in known:
            raise PlanError(
                f"{where}: there is no entry {name!r}; the entries are {', '.join(sorted(known))}"
            )
    data = {"name": found["data"]} if isinstance(found.get("data"), str) else part("data", dict)
    study = Study(
        name=str(found.get("name") or Path(where).stem), title=str(found.get("title", "")), data=data,
        networks=part("networks", dict), training=read(Training, part("training", dict), f"{where}: training"),
        pruning=_pruning(found, where), sparsities=_numbers(part("sparsities", list), f"{where}: sparsities"),
        seeds=_whole(part("seeds", list), f"{where}: seeds"), loss=str(found.get("loss", "")),
        entries=tuple(
            read(Entry, item, f"{where}: compare[{index}]") for index, item in enumerate(part("compare", list))
        ),
        claims=tuple(
            read(Claim, item, f"{where}: claims[{index}]") for index, item in enumerate(part("claims", list, []))
        ),
        dense_at_least=float(found.get("dense_at_least", 0.0)),
    )  # fmt: skip
    _check(study, where)
    return study


def _numbers(items: list[Any], where: str) -> tuple[float, ...]:
    for item in items:
        if not isinstance(item, (int, float)) or isinstance(item, bool):
            raise PlanError(f"{where}: {item!r} is no number")
    return tuple(map(float, items))


def _whole(items: list[Any], where: str) -> tuple[int, ...]:
    for item in items:
        if type(item) is not int or item < 0:
            raise PlanError(f"{where}: {item!r} is no whole number from 0 on")
    return tuple(items)


def _pruning(found: Mapping[str, Any], where: str) -> Pruning:
    """The levels follow from the highest sparsity wanted."""
    given = found.get("pruning") or {}
    if not isinstance(given, Mapping):
        raise PlanError(f"{where}: pruning is a mapping, not {given!r}")
    wanted = max(_numbers(list(found.get("sparsities") or [0.0]), f"{where}: sparsities"))
    made = read(Pruning, {"levels": 0, **given}, f"{where}: pruning")
    return read(Pruning, {"levels": made.level_for(wanted), **given}, f"{where}: pruning")


def _check(study: Study, where: str) -> None:
    for name, value in study.data.items():
        if name not in _DATA:
            raise PlanError(f"{where}: data: there is no entry {name!r}; the entries are {', '.join(_DATA)}")
        if type(value) is not _DATA[name]:
            raise PlanError(f"{where}: data.{name}: expected {_DATA[name].__name__}, not {value!r}")
    if "name" not in study.data:
        raise PlanError(f"{where}: data.name is missing")
    if study.pruning.rewind >= study.training.steps:
        raise PlanError(
            f"{where}: pruning.rewind: a training of {study.training.steps} steps cannot be rewound to step "
            f"{study.pruning.rewind}"
        )
    for number, entry in enumerate(study.entries):
        if entry.method not in METHODS:
            raise PlanError(
                f"{where}: compare[{number}]: there is no method {entry.method!r}; the methods are {', '.join(METHODS)}"
            )
        for name in entry.tweaks:
            if name not in TWEAKS:
                raise PlanError(
                    f"{where}: compare[{number}]: there is no tweak {name!r}; the tweaks are {', '.join(TWEAKS)}"
                )
        _check_entry(study, entry, f"{where}: compare[{number}]")
        for name in (*entry.targets, *entry.sources):
            if name not in study.networks:
                raise PlanError(
                    f"{where}: compare[{number}]: there is no network {name!r} among the networks"
                )
    for name, network in study.networks.items():
        if not isinstance(network, Mapping) or ":" not in str(network.get("factory", "")):
            raise PlanError(
                f"{where}: networks.{name}: give factory: package.module:function, and its arguments"
            )
    labels = _labels(study, where)
    for number, claim in enumerate(study.claims):
        if claim.measure not in _MEASURES:
            raise PlanError(
                f"{where}: claims[{number}]: measure is {' or '.join(_MEASURES)}, not {claim.measure!r}"
            )
        for name in claim.targets:
            if name not in study.networks:
                raise PlanError(f"{where}: claims[{number}]: there is no network {name!r} among the networks")
        for label in (claim.better, claim.than):
            if label not in labels:
                raise PlanError(
                    f"{where}: claims[{number}]: nothing is labelled {label!r}; "
                    f"the labels are {', '.join(sorted(labels))}"
                )
            if (labels[label] == "connect") != (claim.measure == "barrier"):
                needs = "was trained twice" if claim.measure == "barrier" else "was not"
                raise PlanError(
                    f"{where}: claims[{number}]: {claim.measure} compares what {needs} (connect), "
                    f"which {label!r} contradicts"
                )


def _check_entry(study: Study, entry: Entry, where: str) -> None:
    """What can be known of an entry before anything is trained."""
    allowed = _OPTIONS.get(entry.method, ())
    for name in entry.options:
        if name not in allowed:
            has = f"its options are {', '.join(allowed)}" if allowed else "it has none"
            raise PlanError(f"{where}: {entry.method} has no option {name!r}; {has}")
    for sparsity in entry.sparsities or study.sparsities:
        if study.pruning.level_for(sparsity) == 0 and entry.method not in _WITHOUT_MASKS:
            raise PlanError(
                f"{where}: {entry.method} has nothing to prune at a sparsity of {sparsity:g}, less than half a level"
            )
    if entry.tweaks and entry.method in _DYNAMIC:
        raise PlanError(
            f"{where}: tweaks are for tickets whose masks stay as they are, not for {entry.method}"
        )
    if {"soft-labels", "label-smoothing"} <= set(entry.tweaks):
        raise PlanError(
            f"{where}: soft-labels and label-smoothing both say what the labels are; give one of them"
        )
    if study.loss and (chosen := {"soft-labels", "label-smoothing"} & set(entry.tweaks)):
        raise PlanError(f"{where}: {chosen.pop()} would take the place of the study's own loss {study.loss}")


def _labels(study: Study, where: str) -> dict[str, str]:
    """The labels of a study with the kinds of their jobs.

    PlanError where one stands for two different things, whose numbers would be mixed.
    """
    found: dict[tuple[str, str, float, int], str] = {}
    kinds: dict[str, str] = {}
    for run in runs(study):
        place = (run.network, run.label, run.sparsity, run.seed)
        kinds[run.label] = run.job.kind
        if found.setdefault(place, run.job.key) != run.job.key:
            raise PlanError(
                f"{where}: two entries of compare are called {run.label!r} on {run.network} at "
                f"{100 * run.sparsity:.1f} %; give one another label"
            )
    return kinds


def _changed(training: Training) -> dict[str, Any]:
    """The settings that differ from their defaults: one that is added later changes no key of what is done."""
    return {
        item.name: getattr(training, item.name)
        for item in fields(training)
        if item.default is MISSING or getattr(training, item.name) != item.default
    }


class Planner:
    """The jobs of a study; the same options always give the same job."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._levels: dict[tuple[str, int, int], Job] = {}

    def _base(self, network: str, seed: int) -> dict[str, Any]:
        study = self.study
        base: dict[str, Any] = {
            "network": dict(study.networks[network]), "data": study.data, "training": _changed(study.training),
            "rewind": study.pruning.rewind, "seed": seed,
        }  # fmt: skip
        if study.loss:
            base["loss"] = study.loss
        return base

    def rewind(self, network: str, seed: int) -> Job:
        return Job("rewind", self._base(network, seed))

    def level(self, network: str, seed: int, number: int) -> Job:
        """The job that trains a level's ticket, and prunes what it has learnt."""
        at = (network, seed, number)
        if at not in self._levels:
            pruning = self.study.pruning
            options = {
                **self._base(network, seed), "share": pruning.share, "leave_out": list(pruning.leave_out),
                "number": number,
            }  # fmt: skip
            needs = {"rewind": self.rewind(network, seed)}
            if number:
                needs["level"] = self.level(network, seed, number - 1)
            self._levels[at] = Job("level", options, needs)
        return self._levels[at]

    def train(
        self, entry: Entry, network: str, source: str, seed: int, number: int, order: int | None = None
    ) -> Job:
        """The job that trains a method's ticket at the sparsity of a level."""
        options: dict[str, Any] = {**self._base(network, seed), "method": entry.method}
        needs = {"rewind": self.rewind(network, seed)}
        if entry.tweaks:
            options["tweaks"] = list(entry.tweaks)
        if "soft-labels" in entry.tweaks:
            needs["teacher"] = self.train(Entry("dense"), network, "", seed, 0, order=seed)
        chosen = {key: value for key, value in entry.options.items() if _USUAL.get(key) != value}
        if chosen:
            options["options"] = chosen
        if self.study.pruning.leave_out:
            options["leave_out"] = list(self.study.pruning.leave_out)
        if entry.method in _FROM_SOURCE:
            options["source"] = dict(self.study.networks[source])
            needs["source"] = self.level(source, seed, number)
            needs["source_rewind"] = self.rewind(source, seed)
        elif number:
            role = "ticket" if entry.method in _UNDER_TICKETS else SPARSITY
            needs[role] = self.level(network, seed, number)
        if order is not None:
            options.update(order=order, keep=True)
        return Job("train", options, needs)

    def connect(self, entry: Entry, network: str, source: str, seed: int, number: int) -> Job:
        """The job that measures the barrier between two trainings in different orders."""
        ends = {
            role: self.train(entry, network, source, seed, number, order=seed * 1000 + place)
            for place, role in enumerate(("one", "two"), 1)
        }
        options = {key: self._base(network, seed)[key] for key in ("network", "data", "seed")}
        return Job("connect", {**options, "points": 11}, ends)


def runs(study: Study) -> Iterator[Run]:
    """Every number that a study asks for, each once, in the order of its file."""
    seen = set()
    for run in _all_runs(study):
        place = (run.network, run.label, run.sparsity, run.seed, run.job.key)
        if place not in seen:
            seen.add(place)
            yield run


def _all_runs(study: Study) -> Iterator[Run]:
    plan = Planner(study)
    for entry in study.entries:
        for network in entry.targets or study.networks:
            sources = entry.sources or tuple(study.networks) if entry.method in _FROM_SOURCE else ("",)
            for source in sources:
                if source == network:
                    continue
                for seed in study.seeds:
                    yield from _of_entry(plan, entry, network, source, seed)


def _of_entry(plan: Planner, entry: Entry, network: str, source: str, seed: int) -> Iterator[Run]:
    label = entry.name(source)
    pruning = plan.study.pruning
    plain = not entry.connect and not entry.sparsities and not entry.tweaks
    if entry.method == "dense" or (entry.method == "imp" and plain):
        numbers = range(1 if entry.method == "dense" else pruning.levels + 1)
        for number in numbers:
            job = plan.level(network, seed, number)
            yield Run(network, label, entry.method, round(pruning.sparsity_at(number), 4), seed, job)
        return
    for sparsity in entry.sparsities or plan.study.sparsities:
        number = pruning.level_for(sparsity)
        wanted = round(pruning.sparsity_at(number), 4)
        if entry.connect:
            job = plan.connect(entry, network, source, seed, number)
        elif entry.method == "imp" and not entry.tweaks:
            job = plan.level(network, seed, number)
        else:
            job = plan.train(entry, network, source, seed, number)
        yield Run(network, label, entry.method, wanted, seed, job)
