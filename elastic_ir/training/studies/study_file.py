"""Reading a study from its YAML file, and what is wrong with it in one line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.safety.limits import open_plain, yaml_text
from elastic_ir.training.settings import Pruning, Training, read
from elastic_ir.training.studies.method_options import check_options
from elastic_ir.training.studies.study import (
    DYNAMIC,
    METHODS,
    TWEAKS,
    WITHOUT_MASKS,
    Claim,
    Entry,
    Study,
    runs,
)

_DATA: dict[str, type] = {"name": str, "channels": int, "limit": int}
_MEASURES = ("accuracy", "loss", "barrier")


def read_study(path: str | os.PathLike[str]) -> Study:
    """A study from its YAML file; SourceError where it cannot be read, PlanError for what is wrong in it."""
    try:
        import yaml
    except ImportError as error:
        raise SourceError("studies are YAML files: pip install PyYAML") from error
    try:
        with open_plain(Path(path)) as file:
            found = yaml.safe_load(yaml_text(file, str(path)))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        from elastic_ir.passes.infra.yaml_nodes import not_yaml

        raise not_yaml(Path(path), error) from error
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
    sparsities = _sparsities(part("sparsities", list), f"{where}: sparsities")
    study = Study(
        name=str(found.get("name") or Path(where).stem), title=str(found.get("title", "")), data=data,
        networks=part("networks", dict), training=read(Training, part("training", dict), f"{where}: training"),
        pruning=_pruning(found, sparsities, where), sparsities=sparsities,
        seeds=_seeds(part("seeds", list), f"{where}: seeds"), loss=str(found.get("loss", "")),
        entries=tuple(
            read(Entry, item, f"{where}: compare[{index}]") for index, item in enumerate(part("compare", list))
        ),
        claims=tuple(
            read(Claim, item, f"{where}: claims[{index}]") for index, item in enumerate(part("claims", list, []))
        ),
        dense_at_least=_share(found.get("dense_at_least", 0.0), f"{where}: dense_at_least"),
    )  # fmt: skip
    _check(study, where)
    return study


def _sparsities(items: list[Any], where: str) -> tuple[float, ...]:
    if not items:
        raise PlanError(f"{where}: none is given; at least one is wanted")
    for item in items:
        if not isinstance(item, (int, float)) or isinstance(item, bool):
            raise PlanError(f"{where}: {item!r} is no number")
    return tuple(map(float, items))


def _share(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise PlanError(f"{where}: {value!r} is no number")
    if not 0 <= value <= 1:
        hint = f"; write {value / 100:g} for {value:g} %" if 1 < value <= 100 else ""
        raise PlanError(f"{where}: an accuracy is a share from 0 to 1, not {value:g}{hint}")
    return float(value)


def _seeds(items: list[Any], where: str) -> tuple[int, ...]:
    if not items:
        raise PlanError(f"{where}: none is given; at least one is wanted")
    for item in items:
        if type(item) is not int or item < 0:
            raise PlanError(f"{where}: {item!r} is no whole number from 0 on")
        if items.count(item) > 1:
            raise PlanError(f"{where}: {item} is given twice; one seed gives the same numbers every time")
    return tuple(items)


def _pruning(found: Mapping[str, Any], sparsities: tuple[float, ...], where: str) -> Pruning:
    """The levels follow from the highest sparsity wanted."""
    given = found.get("pruning") or {}
    if not isinstance(given, Mapping):
        raise PlanError(f"{where}: pruning is a mapping, not {given!r}")
    made = read(Pruning, {"levels": 0, **given}, f"{where}: pruning")
    levels = _levels(made, sparsities, f"{where}: sparsities").values()
    return read(Pruning, {"levels": max(levels), **given}, f"{where}: pruning")


def _levels(pruning: Pruning, sparsities: Iterable[float], where: str) -> dict[float, int]:
    """The levels that meet these sparsities; PlanError that says where for one that is no share below 1."""
    try:
        return {sparsity: pruning.level_for(sparsity) for sparsity in sparsities}
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error


def _check(study: Study, where: str) -> None:
    for name, value in study.data.items():
        if name not in _DATA:
            raise PlanError(f"{where}: data: there is no entry {name!r}; the entries are {', '.join(_DATA)}")
        if type(value) is not _DATA[name]:
            raise PlanError(f"{where}: data.{name}: expected {_DATA[name].__name__}, not {value!r}")
        if isinstance(value, int) and value < 0:
            raise PlanError(f"{where}: data.{name}: {value} is no whole number from 0 on")
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
    asked = {(run.network, run.label, run.sparsity) for run in runs(study)}
    for number, claim in enumerate(study.claims):
        _check_claim(study, claim, labels, f"{where}: claims[{number}]")
        _check_answerable(study, claim, asked, f"{where}: claims[{number}]")


def _check_claim(study: Study, claim: Claim, labels: Mapping[str, str], where: str) -> None:
    """Whether what a claim names is there, and can be compared."""
    if claim.measure not in ("", *_MEASURES):
        raise PlanError(f"{where}: measure is {', '.join(_MEASURES)}, not {claim.measure!r}")
    for name in claim.targets:
        if name not in study.networks:
            raise PlanError(f"{where}: there is no network {name!r} among the networks")
    for label in (claim.better, claim.than):
        if label not in labels:
            raise PlanError(
                f"{where}: nothing is labelled {label!r}; the labels are {', '.join(sorted(labels))}"
            )
        if (labels[label] == "connect") != (claim.measure == "barrier"):
            needs = "was trained twice" if claim.measure == "barrier" else "was not"
            raise PlanError(
                f"{where}: {claim.measure or 'accuracy'} compares what {needs} (connect), which {label!r} contradicts"
            )


def _check_answerable(study: Study, claim: Claim, asked: set[tuple[str, str, float]], where: str) -> None:
    """Whether runs answer a claim on each network and at each sparsity that it names; a report is silent where none do.

    Of networks that it does not name, one has to answer it.
    """
    ran: dict[tuple[str, str], set[float]] = {}
    for network, label, met in asked:
        ran.setdefault((network, label), set()).add(met)

    def places(label: str, networks: Iterable[str]) -> str:
        found = [
            f"at {', '.join(f'{100 * s:.1f}' for s in sorted(ran[network, label]))} % on {network}"
            for network in networks
            if (network, label) in ran
        ]
        return f"{label!r} is run {' and '.join(found)}" if found else f"{label!r} is not run"

    levels = _levels(study.pruning, claim.sparsities, f"{where}: sparsities").values()
    networks = claim.targets or tuple(study.networks)
    both = {
        network: ran.get((network, claim.better), set()) & ran.get((network, claim.than), set())
        for network in networks
    }
    wanted: list[float | None] = [round(study.pruning.sparsity_at(level), 4) for level in levels]
    for sparsity in wanted or [None]:
        silent = [
            network for network in networks if not both[network] or sparsity not in {None, *both[network]}
        ]
        if not silent or (not claim.targets and len(silent) < len(networks)):
            continue
        shown = silent[:1] if claim.targets else silent
        at = "" if sparsity is None else f" at {100 * sparsity:.1f} %"
        raise PlanError(
            f"{where}: no runs answer it on {shown[0] if claim.targets else 'any network'}{at}: "
            f"{places(claim.better, shown)}, {places(claim.than, shown)}"
        )


def _check_entry(study: Study, entry: Entry, where: str) -> None:
    """What can be known of an entry before anything is trained."""
    levels = _levels(study.pruning, entry.sparsities or study.sparsities, f"{where}: sparsities")
    for sparsity, level in levels.items():
        if level == 0 and entry.method not in WITHOUT_MASKS:
            raise PlanError(
                f"{where}: {entry.method} has nothing to prune at a sparsity of {sparsity:g}, less than half a level"
            )
    if entry.method == "dense" and any(entry.sparsities):
        raise PlanError(f"{where}: the dense network has a sparsity of 0, not {max(entry.sparsities):g}")
    try:
        met = [study.pruning.sparsity_at(level) for level in levels.values()]
        check_options(entry.method, entry.options, study.training.steps - study.pruning.rewind, met)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error
    if entry.connect and entry.method in DYNAMIC:
        raise PlanError(
            f"{where}: connect measures the line between two trainings of one ticket; the masks of {entry.method} "
            "move, so that its two ends would have different ones"
        )
    if entry.tweaks and entry.method in DYNAMIC:
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
