"""A study: one YAML file with the networks, data, methods, sparsities and seeds to compare.

What the file holds (:mod:`elastic_ir.training.studies.study_file` reads it), and the runs that it asks for: each run is
one number of one seed, with the job that computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Literal, TypeAlias, get_args

from elastic_ir.training.entries import Count, Range, Share, Sparsity
from elastic_ir.training.settings import DATA_KINDS, Pruning, Training
from elastic_ir.training.studies.jobs import SPARSITY, Job

#: What a study can compare.
Method: TypeAlias = Literal[
    "imp", "dense", "transform", "hybrid", "magnitude", "random", "reinit", "snip", "grasp", "synflow", "rigl", "dpf"
]  # fmt: skip
METHODS = get_args(Method)
#: What may be done to a ticket so that it trains better; see :mod:`elastic_ir.training.studies.tweaks`.
Tweak: TypeAlias = Literal[
    "ghost-skips", "ghost-softness", "layerwise-rescale", "label-smoothing", "soft-labels"
]
TWEAKS = get_args(Tweak)
#: What a claim compares; empty for what the trainings are measured by.
Measure: TypeAlias = Literal["", "accuracy", "loss", "barrier"]
FROM_SOURCE = ("transform", "hybrid")
WITHOUT_MASKS = ("imp", "dense", "transform")  # what there is at sparsity 0, too
DYNAMIC = ("rigl", "dpf")
#: What a transformation does by default; written out or not, the job is the same.
_USUAL = {"order": "append", "drop": "tail"} | dict.fromkeys(
    ("permute_copies", "permute_masks", "new_weights"), False
)
#: They use the masks of the target's own ticket; others its sparsity alone.
_UNDER_TICKETS = ("imp", "random", "reinit")


@dataclass(frozen=True)
class Entry:
    """One line of a study's comparison."""

    method: Method
    label: str = ""  #: how it is called in tables and plots; ``{source}`` stands for the source network
    targets: tuple[str, ...] = ()  #: target networks; all of the study without it
    #: for transformations: the networks whose tickets are transformed; all without it
    sources: tuple[str, ...] = ()
    sparsities: tuple[Sparsity, ...] = ()  #: those of the study without it
    #: what the method takes (order, replicate, drop, ...)
    options: dict[str, Any] = field(default_factory=dict)
    tweaks: tuple[Tweak, ...] = ()  #: names of :data:`TWEAKS`, applied together
    connect: bool = False  #: train it twice in different orders, and measure the barrier between the two

    def name(self, source: str = "") -> str:
        """The label, or one made of all in which the entry differs from its method alone."""
        label = self.label
        if not label:
            label = f"{self.method} from {{source}}" if self.method in FROM_SOURCE else self.method
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
    sparsities: tuple[Sparsity, ...] = ()
    margin: float = 0.0  #: in points; negative: "at most so much worse"
    #: "accuracy", "loss" or, where both were trained twice (``connect``), "barrier", of which the lower one is better;
    #: without it what trainings are measured by
    measure: Measure = ""


@dataclass(frozen=True)
class DataEntry:
    """The entry ``data`` of a study, where it is a mapping."""

    name: str
    channels: Count = 0  #: grey images are repeated to so many
    limit: Count = 0  #: the first images alone; 0 is all


@dataclass(frozen=True)
class Study:
    """All that a study file holds; the fields are its entries."""

    data: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    training: Training
    pruning: Pruning
    sparsities: Annotated[tuple[Sparsity, ...], Range(1)]
    seeds: Annotated[tuple[Count, ...], Range(1)]
    compare: tuple[Entry, ...]
    claims: tuple[Claim, ...] = ()
    name: str = ""
    title: str = ""
    loss: str = ""
    dense_at_least: Share = 0.0  #: accuracy that the dense network must reach, or claims stay undecided

    @property
    def notes(self) -> tuple[str, ...]:
        """What its reader should know: sparsities that no level meets, and what would meet them."""
        asked = dict.fromkeys(self.sparsities)
        for entry in self.compare:
            asked |= dict.fromkeys(entry.sparsities)
        for claim in self.claims:
            asked |= dict.fromkeys(claim.sparsities)
        return tuple(note for sparsity in asked if (note := self.pruning.miss(sparsity)))

    @property
    def wanted(self) -> list[float]:
        """The sparsities as levels meet them, which is how runs name them."""
        pruning = self.pruning
        return sorted({round(pruning.sparsity_at(pruning.level_for(s)), 4) for s in self.sparsities})


@dataclass(frozen=True)
class Run:
    """One number of one seed: where it belongs in a table, and the job that computes it."""

    network: str
    label: str
    method: str
    sparsity: float  #: as wanted; what was reached is in the job's result
    seed: int
    job: Job
    own: bool = False  #: whether it is the network's own training, at sparsity 0 the dense one


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
        if study.data["name"].partition(":")[0] not in DATA_KINDS:
            # as it gives them; once its targets became whole numbers, its inputs floats, and a Dataset was read once
            base["data"] = {**study.data, "as_given": True}
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
        if entry.method in FROM_SOURCE:
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
        base = self._base(network, seed)
        options = {key: base[key] for key in base if key in ("network", "data", "seed", "loss")}
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
    for entry in study.compare:
        for network in entry.targets or study.networks:
            sources = entry.sources or tuple(study.networks) if entry.method in FROM_SOURCE else ("",)
            for source in sources:
                if source == network:
                    continue
                for seed in study.seeds:
                    yield from _of_entry(plan, entry, network, source, seed)


def _of_entry(plan: Planner, entry: Entry, network: str, source: str, seed: int) -> Iterator[Run]:
    pruning = plan.study.pruning
    own = entry.method in ("imp", "dense") and not entry.connect and not entry.tweaks
    if own and entry.method == "imp" and not entry.sparsities:
        levels = list(range(pruning.levels + 1))
    else:
        wanted = (0.0,) if entry.method == "dense" else entry.sparsities or plan.study.sparsities
        levels = [pruning.level_for(sparsity) for sparsity in wanted]
    for number in levels:
        if own:
            job = plan.level(network, seed, number)
        else:
            job = (plan.connect if entry.connect else plan.train)(entry, network, source, seed, number)
        met = round(pruning.sparsity_at(number), 4)
        yield Run(network, entry.name(source), entry.method, met, seed, job, own)
