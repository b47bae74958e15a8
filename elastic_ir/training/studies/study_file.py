"""Reading a study from its YAML file, and what is wrong with it in one line.

A value that a method would refuse is found here, before the search has been paid for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from elastic_ir.errors import MaskError, PlanError
from elastic_ir.training.entries import misfit
from elastic_ir.training.settings import Place, Pruning, read
from elastic_ir.training.studies.method_options import OPTIONS
from elastic_ir.training.studies.study import (
    DYNAMIC,
    WITHOUT_MASKS,
    Claim,
    DataEntry,
    Entry,
    Study,
    runs,
)

_LABELS = {"soft-labels", "label-smoothing"}  # tweaks that choose what the labels are


def read_study(path: str | os.PathLike[str]) -> Study:
    """A study from its YAML file; SourceError where it cannot be read, PlanError with the line of what is wrong."""
    from elastic_ir.passes.infra.yaml_nodes import compose, not_yaml  # late: it brings the rewriter

    root = compose(path)
    import yaml

    try:
        found = yaml.SafeLoader("").construct_document(root) if root is not None else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise not_yaml(Path(path), error) from error
    where = Place(str(path), root, line=1)
    if not isinstance(found, Mapping):
        where.fail("a study is a mapping with name, data, networks, training, pruning, ...")
    given = {name: value for name, value in found.items() if value is not None}
    given |= {name: str(given[name]) for name in ("name", "title") if name in given}
    if isinstance(given.get("data"), str):
        given["data"] = {"name": given["data"]}
    if isinstance(pruning := given.get("pruning", {}), Mapping):
        given["pruning"] = {"levels": 0, **pruning}
    study = read(Study, given, where)
    study = replace(study, name=study.name or Path(path).stem)
    levels = _levels(study.pruning, study.sparsities, where.at("sparsities")).values()
    if not study.pruning.levels:
        study = replace(study, pruning=replace(study.pruning, levels=max(levels, default=0)))
    _check(study, where)
    return study


def _levels(pruning: Pruning, sparsities: Iterable[float], where: Place) -> dict[float, int]:
    """The levels that meet these sparsities; PlanError with the place for one that is not a share below 1."""
    try:
        return {sparsity: pruning.level_for(sparsity) for sparsity in sparsities}
    except PlanError as error:
        where.fail(str(error))


def _check(study: Study, where: Place) -> None:
    read(DataEntry, study.data, where.at("data"))
    for seed in study.seeds:
        if study.seeds.count(seed) > 1:
            where.at("seeds").fail(f"{seed} is given twice; one seed gives the same numbers every time")
    if study.pruning.rewind >= study.training.steps:
        where.at("pruning", "rewind").fail(
            f"a training of {study.training.steps} steps cannot be rewound to step {study.pruning.rewind}"
        )
    for name, network in study.networks.items():
        if ":" not in str(network.get("factory", "")):
            where.at("networks", name).fail("give factory: package.module:function, and its arguments")
    for number, entry in enumerate(study.compare):
        _check_entry(study, entry, where.at("compare", number))
    labels = _labels(study, where.at("compare"))
    asked = {(run.network, run.label, run.sparsity) for run in runs(study)}
    for number, claim in enumerate(study.claims):
        _check_claim(study, claim, labels, where.at("claims", number))
        _check_answerable(study, claim, asked, where.at("claims", number))


def _check_known(names: Iterable[str], known: Iterable[str], what: str, where: Place, key: str = "") -> None:
    for name in names:
        if name not in known:
            where.fail(f"there is no {what} {name!r}; the {what}s are {', '.join(known)}", key)


def _check_claim(study: Study, claim: Claim, labels: Mapping[str, str], where: Place) -> None:
    """Check that what a claim names exists and can be compared."""
    _check_known(claim.targets, study.networks, "network", where, "targets")
    for key, label in (("better", claim.better), ("than", claim.than)):
        if label not in labels:
            where.fail(f"nothing is labelled {label!r}; the labels are {', '.join(sorted(labels))}", key)
        if (labels[label] == "connect") != (claim.measure == "barrier"):
            needs = "was trained twice" if claim.measure == "barrier" else "was not"
            where.fail(
                f"{claim.measure or 'accuracy'} compares what {needs} (connect), which {label!r} contradicts",
                key,
            )


def _check_answerable(study: Study, claim: Claim, asked: set[tuple[str, str, float]], where: Place) -> None:
    """Check that runs answer a claim on each network and at each sparsity that it names; a report omits the others.

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

    levels = _levels(study.pruning, claim.sparsities, where.at("sparsities")).values()
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
        where.fail(
            f"no runs answer it on {shown[0] if claim.targets else 'any network'}{at}: "
            f"{places(claim.better, shown)}, {places(claim.than, shown)}"
        )


def _check_entry(study: Study, entry: Entry, where: Place) -> None:
    """What can be known of an entry before anything is trained."""
    method, tweaks = entry.method, set(entry.tweaks)
    _check_known((*entry.targets, *entry.sources), study.networks, "network", where, "targets")
    levels = _levels(study.pruning, entry.sparsities or study.sparsities, where.at("sparsities"))
    for sparsity, level in levels.items():
        if level == 0 and method not in WITHOUT_MASKS:
            where.fail(f"{method} has nothing to prune at a sparsity of {sparsity:g}, less than half a level")
    if method == "dense" and any(entry.sparsities):
        where.fail(f"the dense network has a sparsity of 0, not {max(entry.sparsities):g}", "sparsities")
    met = [study.pruning.sparsity_at(level) for level in levels.values()]
    _check_options(method, entry.options, study.training.steps - study.pruning.rewind, met, where)
    if entry.connect and method in DYNAMIC:
        where.fail(
            f"connect measures the line between two trainings of one ticket; the masks of {method} move, so that its "
            "two ends would have different ones", "connect",
        )  # fmt: skip
    if tweaks and method in DYNAMIC:
        where.fail(f"tweaks are for tickets whose masks stay as they are, not for {method}", "tweaks")
    if tweaks >= _LABELS:
        where.fail("soft-labels and label-smoothing both choose the labels; give one of them", "tweaks")
    if study.loss and (chosen := tweaks & _LABELS):
        where.fail(f"{chosen.pop()} would take the place of the study's own loss {study.loss}", "tweaks")


def _check_options(
    method: str, options: Mapping[str, Any], steps: int, sparsities: Iterable[float], where: Place
) -> None:
    """PlanError for an option that a method does not have, and for a value that it would refuse.

    ``steps`` is how many it trains, ``sparsities`` those that it is asked for. Blocks are checked without a network,
    so that one which a stage does not have is not found here.
    """
    allowed = OPTIONS.get(method, {})
    for name, value in options.items():
        place = where.at("options", name)
        if name not in allowed:
            has = f"its options are {', '.join(allowed)}" if allowed else "it has none"
            replace(place, entries=where.entries).fail(f"{method} has no option {name!r}; {has}")
        if why := misfit(allowed[name], value):
            place.fail(why)
    if method in DYNAMIC:
        from elastic_ir.training.pruning.dynamic import check_dpf, check_rigl  # late: it imports torch

        ranges = {name: value for name, value in options.items() if name != "distribution"}
        try:
            if method == "rigl":
                check_rigl(steps, **ranges)
            else:
                for sparsity in sparsities:
                    check_dpf(sparsity, steps, **ranges)
        except MaskError as error:
            where.fail(f"{method}: {error}", "options")


def _labels(study: Study, where: Place) -> dict[str, str]:
    """The labels of a study with the kinds of their jobs.

    PlanError where one stands for two different things, whose numbers would be mixed.
    """
    found: dict[tuple[str, str, float, int], str] = {}
    kinds: dict[str, str] = {}
    for run in runs(study):
        place = (run.network, run.label, run.sparsity, run.seed)
        kinds[run.label] = run.job.kind
        if found.setdefault(place, run.job.key) != run.job.key:
            where.fail(
                f"two entries of compare are called {run.label!r} on {run.network} at "
                f"{100 * run.sparsity:.1f} %; give one another label"
            )
    return kinds
