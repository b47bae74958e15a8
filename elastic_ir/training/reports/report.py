"""The report of a study: what was found, as tables with confidence intervals, and the claims with their answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from elastic_ir.errors import printable
from elastic_ir.training.reports.intervals import MOST, half_width, seeds_needed, welch
from elastic_ir.training.studies.jobs import SPARSITY, in_order
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.study import FROM_SOURCE, Claim, Run, Study, runs

_TICKETS = ("ticket", "source")  #: roles of jobs that hold a ticket and train it, too


@dataclass
class Cell:
    """What the seeds found for one method on one network at one sparsity."""

    #: accuracies in percent, or losses, the lower the better
    scores: list[float] = field(default_factory=list)
    measure: str = "accuracy"  #: or "loss", where targets are not classes
    reached: list[float] = field(default_factory=list)  #: the sparsities of the tickets
    barriers: list[float] = field(default_factory=list)  #: where connectivity was measured
    lines: list[list[float]] = field(default_factory=list)  #: accuracies along the line
    flops: list[float] = field(default_factory=list)  #: of each training, without what was scored for it
    flops_needed: list[float] = field(default_factory=list)  #: of all jobs that led to it, itself included

    def values(self, measure: str) -> list[float]:
        """What a claim compares: scores of trainings, or barriers between two; none of another measure than asked."""
        if measure == "barrier":
            return self.barriers
        return [] if self.barriers or measure not in ("", self.measure) else self.scores

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    @property
    def error(self) -> float:
        """Half the width of the 95 % confidence interval of the mean (Student's t); infinite for one seed."""
        return half_width(self.scores)


@dataclass(frozen=True)
class Row:
    """One number of one seed, and the result of the job that found it."""

    run: Run
    result: dict[str, Any]


@dataclass
class Findings:
    """Everything found so far: by network, label and wanted sparsity."""

    study: Study
    cells: dict[tuple[str, str, float], Cell]
    missing: int  #: numbers that are not there yet
    total: int
    asked: set[tuple[str, str, float]] = field(default_factory=set)  #: the cells that the study wants
    methods: dict[str, str] = field(default_factory=dict)  #: by label
    dense: dict[str, Cell] = field(default_factory=dict)  #: the dense training of each network
    rows: list[Row] = field(default_factory=list)  #: the numbers themselves
    #: of training, by job, those that led there included
    seconds: dict[str, float] = field(default_factory=dict)

    def labels(self, network: str) -> list[str]:
        return list(dict.fromkeys(label for at, label, _ in self.cells if at == network))

    def curve(self, network: str, label: str) -> list[tuple[float, Cell]]:
        """The cells of a method on a network by sparsity."""
        return sorted(
            (s, cell) for (at, name, s), cell in self.cells.items() if (at, name) == (network, label)
        )


def collect(study: Study, store: Store) -> Findings:
    """What a store has of a study's numbers."""
    cells: dict[tuple[str, str, float], Cell] = {}
    found = Findings(study, cells, 0, 0)
    for run in runs(study):
        found.total += 1
        found.asked.add((run.network, run.label, run.sparsity))
        found.methods[run.label] = run.method
        if not store.has(run.job.key):
            found.missing += 1
            continue
        cell = cells.setdefault((run.network, run.label, run.sparsity), Cell())
        result = store.result(run.job.key)
        found.rows.append(Row(run, result))
        _enter(cell, result)
        led = in_order([run.job])
        found.seconds |= {job.key: store.result(job.key)["seconds"] for job in led if store.has(job.key)}
        # a ticket's masks are there before its own training, which finding it did not take; and what comes from
        # another network has the weights of that one's rewind point, not of the target's
        roles = (*_TICKETS, "rewind") if run.method in FROM_SOURCE else _TICKETS
        needs = {role: job.key for role, job in run.job.needs.items()}
        unneeded = {needs[role] for role in roles if role in needs} - {needs.get("source_rewind")}
        if run.own and run.sparsity == 0:
            found.dense.setdefault(run.network, cell)
        needed = [job.key for job in in_order([run.job], SPARSITY) if job.key not in unneeded]
        cell.flops_needed.append(sum(store.result(key)["flops"] for key in needed))
    return found


def _enter(cell: Cell, result: dict[str, Any]) -> None:
    cell.measure, unit = ("loss", 1) if "loss" in result else ("accuracy", 100)
    cell.scores.append(unit * result[cell.measure])
    cell.reached.append(result["sparsity"])
    cell.flops.append(result["flops"] - result.get("scoring", 0.0))
    if "barrier" in result:
        cell.barriers.append(unit * result["barrier"])
        cell.lines.append([unit * value for value in result["losses" if unit == 1 else "accuracies"]])


@dataclass(frozen=True)
class Answer:
    """A claim on one network at one sparsity: yes, no or undecided, with the numbers behind it."""

    claim: Claim
    network: str
    sparsity: float
    verdict: str
    difference: float  #: better less than, in points; of losses in their own unit
    error: float  #: half the width of the 95 % interval of the difference
    why: str
    losses: bool = False  #: whether losses were compared, or barriers of them


def answers(found: Findings) -> list[Answer]:
    """Every claim on each network and sparsity that it names (on all without), as far as both methods have been run."""
    given = []
    for claim in found.study.claims:
        pruning = found.study.pruning
        wanted = {round(pruning.sparsity_at(pruning.level_for(s)), 4) for s in claim.sparsities}
        for network in claim.targets or found.study.networks:
            better, than = (
                {s: cell for s, cell in found.curve(network, label) if cell.values(claim.measure)}
                for label in (claim.better, claim.than)
            )
            both = (
                {s for at, label, s in found.asked if (at, label) == (network, one)}
                for one in (claim.better, claim.than)
            )
            for sparsity in sorted(wanted or set.intersection(*both)):
                if sparsity in better and sparsity in than:
                    given.append(_answer(found, claim, network, sparsity, better[sparsity], than[sparsity]))
                elif {(network, name, sparsity) for name in (claim.better, claim.than)} <= found.asked:
                    why = _unmeasured(found, claim, network, sparsity)
                    given.append(Answer(claim, network, sparsity, "undecided", math.nan, math.nan, why))
    return given


def _unmeasured(found: Findings, claim: Claim, network: str, sparsity: float) -> str:
    """Why a claim's sides cannot be compared: one is missing, or both were measured by something else."""
    cells = [found.cells.get((network, label, sparsity)) for label in (claim.better, claim.than)]
    for cell in cells:
        if cell is not None and claim.measure not in ("", "barrier", cell.measure):
            return f"the {cell.measure} was measured, not the {claim.measure}"
    return "not run yet"


def _answer(found: Findings, claim: Claim, network: str, sparsity: float, one: Cell, two: Cell) -> Answer:
    better, than = one.values(claim.measure), two.values(claim.measure)
    difference = fmean(better) - fmean(than)
    error = welch(better, than)
    # a low barrier is the better one, and so is a low loss
    gain = -difference if claim.measure == "barrier" or one.measure == "loss" else difference
    verdict, why = "undecided", ""
    dense = found.dense.get(network)
    needed = 100 * found.study.dense_at_least
    if needed and dense is None:
        why = "the dense network was not trained: add imp or dense to compare"
    elif needed and dense is not None and dense.measure != "accuracy":
        why = "dense_at_least is an accuracy, and the dense network is measured by its loss"
    elif needed and dense is not None and dense.mean < needed:
        why = f"the dense network reaches {dense.mean:.1f} %, not {needed:.0f} %: train longer"
    elif not math.isfinite(error):
        why = "one seed: run three or more"
    elif abs(gain - claim.margin) <= error:
        why = f"the interval holds the margin; {_seeds(better, than, abs(gain - claim.margin))} would decide"
    else:
        verdict = "yes" if gain > claim.margin else "no"
    return Answer(claim, network, sparsity, verdict, difference, error, why, one.measure == "loss")


def _seeds(one: Sequence[float], two: Sequence[float], distance: float) -> str:
    needed = seeds_needed(one, two, distance)
    return f"more than {MOST} seeds" if needed == MOST else f"about {needed} seeds"


def markdown(found: Findings, plots: Iterable[str] = ()) -> str:
    """The report as Markdown: a table for each network, connectivity, misalignment, claims."""
    study = found.study
    lines = [f"# {study.title or study.name}", ""]
    if found.missing:
        lines += [f"**Not finished: {found.missing} of {found.total} numbers are missing.**", ""]
    settings = study.training
    lines += [
        f"Data: {study.data['name']}. Training: {settings.steps} steps of {settings.batch_size} images, peak rate "
        f"{settings.lr:g}, {settings.schedule}; rewound to step {study.pruning.rewind}. Seeds: {len(study.seeds)}. "
        f"{_scales(found)}, mean and 95 % confidence interval over the seeds (Student's t). Budget: "
        f"{len(found.seconds)} jobs, {sum(found.seconds.values()) / 3600:.1f} hours of training in all.", "",
    ]  # fmt: skip
    for note in study.notes:
        lines += [f"**{note[0].upper()}{note[1:]}.**", ""]
    for plot in plots:
        lines += [f"![{plot}]({plot})", ""]
    for network in study.networks:
        lines += _table(found, network)
    for network in study.networks:
        lines += _layers(found, network)
    lines += _connectivity(found) + _misalignment(found) + _cost(found) + _claims(found)
    return "\n".join(map(printable, lines))


def _section(
    title: str, text: str, columns: Sequence[str], rows: Iterable[Sequence[str]], align: str
) -> list[str]:
    """A heading, a text and a table, whose columns are aligned by ``align`` (l, r), the rest to the right.

    Nothing without rows.
    """
    shown = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    if len(shown) == 1:
        return []
    rule = "|".join("---" if side == "l" else "--:" for side in align.ljust(len(columns), "r"))
    return [f"## {title}", "", *([text, ""] if text else []), shown[0], f"|{rule}|", *shown[1:], ""]


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _spread(values: Sequence[float], digits: str) -> str:
    """The mean with half the width of its confidence interval."""
    error = half_width(values)
    return f"{fmean(values):{digits}}" + (f" ± {error:{digits}}" if math.isfinite(error) else " (1 seed)")


def _scales(found: Findings) -> str:
    """What the numbers of the tables are; both where a study's networks are measured differently."""
    scales = []
    measures = {cell.measure for cell in found.cells.values()}
    if measures != {"loss"}:
        scales.append("Accuracy in percent")
    if "loss" in measures:
        scales.append("Loss on the test data (the targets are not classes; the lower the better)")
    return " and ".join(scales)


def _table(found: Findings, network: str) -> list[str]:
    plain = {key: cell for key, cell in found.cells.items() if key[0] == network and not cell.barriers}
    columns = sorted({sparsity for _, _, sparsity in plain})
    losses = all(cell.measure == "loss" for cell in plain.values())
    rows = [
        [label, *(_cell(plain.get((network, label, sparsity))) for sparsity in columns)]
        for label in dict.fromkeys(label for _, label, _ in plain)
    ]
    title = f"{network}{' (loss)' if losses else ''}"
    return _section(title, "", ["method", *map(_percent, columns)], rows, "l")


def _cell(cell: Cell | None) -> str:
    return "" if cell is None else _spread(cell.scores, ".2f" if cell.measure == "accuracy" else ".4g")


def _layers(found: Findings, network: str) -> list[str]:
    """Where methods' sparsest tickets are pruned: for each layer the mean over the seeds, in the network's order."""
    shares: dict[str, dict[str, list[float]]] = {}
    held = [row for row in found.rows if row.run.network == network and row.result.get("layers")]
    most = max((row.run.sparsity for row in held), default=0.0)
    for row in held:
        if row.run.sparsity == most:
            for layer, share in row.result["layers"].items():
                shares.setdefault(layer, {}).setdefault(row.run.label, []).append(share)
    labels = list(dict.fromkeys(label for of_layer in shares.values() for label in of_layer))
    rows = [
        [f"`{layer}`", *(_percent(fmean(own[label])) if label in own else "" for label in labels)]
        for layer, own in shares.items()
    ]
    text = f"Of the tickets at {_percent(most)}, mean over the seeds; the file of layers beside this one has all."
    return _section(f"{network}: sparsity by layer", text, ["layer", *labels], rows, "l")


def _connectivity(found: Findings) -> list[str]:
    measured = {key: cell for key, cell in found.cells.items() if cell.barriers}
    losses = all(cell.measure == "loss" for cell in measured.values())
    rows = [
        [network, label, _percent(sparsity), _spread(cell.barriers, ".4g" if losses else ".2f")]
        for (network, label, sparsity), cell in measured.items()
    ]
    columns = ["network", "ticket", "sparsity", f"barrier, {'of the loss' if losses else 'points'}"]
    return _section("Linear mode connectivity", "", columns, rows, "ll")


def _misalignment(found: Findings) -> list[str]:
    """Where the tickets' sparsity is not the wanted one, since transformations cannot choose it."""
    rows = [
        [network, label, _percent(sparsity), _percent(reached, 2)]
        for (network, label, sparsity), cell in found.cells.items()
        if abs((reached := fmean(cell.reached)) - sparsity) >= 0.0005
    ]
    return _section("Misaligned sparsity", "", ["network", "method", "wanted", "reached"], rows, "ll")


def _cost(found: Findings) -> list[str]:
    """Training FLOPs as section 4.5 of the paper counts them, in dense trainings of the same network."""
    rows = []
    for network in found.study.networks:
        dense = found.dense.get(network)
        for (at, label, sparsity), cell in found.cells.items():
            if at != network or sparsity == 0 or cell.barriers or dense is None:
                continue
            own, whole = (
                fmean(flops) / fmean(dense.flops_needed) for flops in (cell.flops, cell.flops_needed)
            )
            rows.append([network, label, _percent(sparsity), f"{own:.3f}", f"{whole:.2f}"])
    text = (
        "In dense trainings of the same network: the training of the ticket alone, and with all that finding "
        "it took (a transformed ticket's source is found once for all targets)."
    )
    columns = ["network", "method", "sparsity", "training", "with the search"]
    return _section("Training FLOPs", text, columns, rows, "ll")


def _claims(found: Findings) -> list[str]:
    rows = [
        [
            item.claim.text, item.network, _percent(item.sparsity), _difference(item), f"{item.claim.margin:+g}",
            item.verdict + (f": {item.why}" if item.why else ""),
        ]
        for item in answers(found)
    ]  # fmt: skip
    text = (
        "A claim holds where the difference (for barriers and losses: how much lower) is above the margin, in "
        "points (of losses in their own unit), by more than its error."
    )
    columns = ["claim", "network", "sparsity", "difference", "margin", "answer"]
    return _section("Claims", text, columns, rows, "llrrrl")


def _difference(item: Answer) -> str:
    if math.isnan(item.difference):
        return ""
    digits = ".4g" if item.losses else ".2f"
    spread = f" ± {item.error:{digits}}" if math.isfinite(item.error) else ""
    return f"{item.difference:+{digits}}{spread}"
