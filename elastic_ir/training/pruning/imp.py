"""Iterative magnitude pruning: the search for winning tickets, level by level, each a file.

Frankle et al. 2020, *Linear Mode Connectivity and the Lottery Ticket Hypothesis*, with rewinding to step r: train to
step r; then train on, prune a share of what remains by global magnitude, rewind to step r, and again. A search that was
interrupted goes on behind its last finished level.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.files import atomic_output
from elastic_ir.formats.locks import LOOK, locked, owner, waited_for
from elastic_ir.tickets import magnitude_masks, sparsity
from elastic_ir.training.callbacks import save_state
from elastic_ir.training.checks import check_search
from elastic_ir.training.data import Data
from elastic_ir.training.fit import Engine, Measured, fit, logger_in, measured
from elastic_ir.training.pruning.fingerprints import of_images, of_loss, of_tensors
from elastic_ir.training.settings import Log, Pruning, Training
from elastic_ir.training.task import Loss

_LOCK = ".search.lock"


@dataclass(frozen=True)
class Level:
    """A finished level: the ticket that it trained, how well that did, and the file of the ticket."""

    number: int
    sparsity: float
    accuracy: float  #: on the test data; not a number where the targets are not classes, so that the loss is measured
    seconds: float  #: of training
    path: Path  #: ``.pt``: the weights at the rewind point with the masks of this level
    loss: float | None = None  #: on the test data, where the targets are not classes

    @property
    def measured(self) -> Measured:
        return Measured("accuracy", self.accuracy) if self.loss is None else Measured("loss", self.loss)


def find_tickets(
    network: nn.Module, data: Data, training: Training, pruning: Pruning,
    folder: str | os.PathLike[str], *, seed: int = 0, loss: Loss | None = None,
    engine: Engine | None = None, report: Callable[[Level], None] | None = None, log: Log = "",
    waiting: Callable[[str], None] | None = None,
) -> list[Level]:  # fmt: skip
    """Levels 0 to ``pruning.levels`` of a freshly initialized network, found or read from what is in ``folder``.

    Level 0 is the dense network; level k trains the ticket that k prunings have left. The network given is the
    initialization; it is not changed. ``log`` is "csv" or "tensorboard": each training logs into a folder of its own,
    ``logs/NAME``. Where another process does the same search in the folder, its levels are waited for, and gone on
    with if it ends; ``waiting`` is called with that process's name.

    Raises PlanError where the folder holds another search: of another network, with other images, another loss or
    other settings, or one that does not record all of these; a search that has finished no level yet gives way, unless
    a process is working on it; and for a training that diverged. Before anything is written it raises PlanError for a
    network that does not fit the data, or a rewind step outside the training, SourceError for images that do not fit
    their labels, MaskError for a name to leave out that does not exist.
    """
    folder = Path(folder)
    check_search(network, data, training, pruning, loss)
    folder.mkdir(parents=True, exist_ok=True)
    mine = _claim(folder, network, data, training, pruning, seed, loss)
    network = copy.deepcopy(network)
    start = folder / "rewind.pt"
    with _to_do(folder, start, waiting) as wanted:
        if wanted:
            logged = _logging(engine, log, folder, "rewind")
            fit(network, data, training, order=seed, stop=pruning.rewind, loss=loss, engine=logged)
            _hold(folder, mine)
            save_state(network.state_dict(), start)
    rewound = torch.load(start, weights_only=True)
    masks: dict[str, Tensor] = {}
    levels: list[Level] = []
    for number in range(pruning.levels + 1):
        path = folder / f"level{number:02}.pt"
        result = folder / f"level{number:02}.json"
        with _to_do(folder, result, waiting) as wanted:
            if wanted:
                logged = _logging(engine, log, folder, path.stem)
                seconds, score = train_level(
                    network, rewound, masks, data, training, pruning, number, order=seed, ticket=path,
                    following=folder / f"next{number:02}.pt", loss=loss, engine=logged,
                )  # fmt: skip
                _hold(folder, mine)
                found = {"number": number, "sparsity": sparsity(masks), score.measure: score.value}
                with atomic_output(result) as temporary:
                    temporary.write_text(json.dumps({**found, "seconds": seconds}, indent=1) + "\n", "utf-8")
        level = Level(**{"accuracy": math.nan, **json.loads(result.read_text("utf-8"))}, path=path)
        saved = torch.load(folder / f"next{number:02}.pt", weights_only=True)
        masks = {name: mask.bool() for name, mask in saved.items()}
        levels.append(level)
        if report is not None:
            report(level)
    return levels


@contextlib.contextmanager
def _to_do(folder: Path, made: Path, waiting: Callable[[str], None] | None) -> Iterator[bool]:
    """Whether a file of a search has to be made; where another process makes it, it is waited for."""
    if made.is_file():
        yield False
        return
    with waited_for(folder / _LOCK, waiting):
        yield not made.is_file()


def train_level(
    network: nn.Module, rewound: dict[str, Tensor], masks: dict[str, Tensor], data: Data, training: Training,
    pruning: Pruning, number: int, *, order: int, ticket: Path, following: Path, loss: Loss | None = None,
    engine: Engine | None = None,
) -> tuple[float, Measured]:  # fmt: skip
    """Train the ticket of a level, measure it, and prune what it has learnt: seconds of training, and how it did.

    Writes the ticket that was trained, and the masks that follow.
    """
    network.load_state_dict(rewound)
    seconds = fit(
        network, data, training, order=order, start=pruning.rewind, masks=masks, loss=loss, engine=engine
    )
    score = measured(network, data.test, loss, engine=engine)
    save_ticket(network, rewound, masks, data, ticket)
    pruned = next_masks(network, masks, pruning, number + 1)
    save_state({name: mask.to(torch.uint8) for name, mask in pruned.items()}, following)
    return seconds, score


def next_masks(
    network: nn.Module, masks: dict[str, Tensor], pruning: Pruning, level: int
) -> dict[str, Tensor]:
    """The masks of a level: the smallest of the weights that a trained network has left are pruned.

    Pruned weights are zero and so the smallest of all: what is pruned stays pruned, but for a tie with a weight that
    training has left at exactly zero, which the masks given decide.
    """
    found = magnitude_masks(network, pruning.sparsity_at(level), pruning.leave_out)
    return {
        name: mask & masks[name].to(mask.device) if name in masks else mask for name, mask in found.items()
    }


def save_ticket(
    network: nn.Module, rewound: dict[str, Tensor], masks: dict[str, Tensor], data: Data, path: Path
) -> None:
    """The weights at the rewind point with the masks, as a file that every command of ElasticIR takes."""
    import elastic_ir as eir

    ticket = copy.deepcopy(network)
    ticket.load_state_dict(rewound)
    ticket = ticket.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    graph = eir.trace(ticket, (data.example(ticket),), masks=masks or None)
    eir.save(graph, path, check=False)


def _logging(engine: Engine | None, log: Log, folder: Path, name: str) -> Engine | None:
    if not log:
        return engine
    return replace(engine or Engine(), logger=logger_in(log, folder / "logs", name))


def _claim(
    folder: Path, network: nn.Module, data: Data, training: Training, pruning: Pruning, seed: int,
    loss: Loss | None,
) -> dict[str, Any]:  # fmt: skip
    """Note in the folder whose search it holds, and return the note; more levels of the same search are welcome.

    One that has finished no level is worth less than a command that was corrected: it is taken out.
    """
    mine: dict[str, Any] = {
        "network": f"{type(network).__name__} {of_tensors(network.state_dict().values())}",
        "data": f"{data.name} {len(data.train)} {of_tensors([data.train.labels])}",
        "set of images": f"{len(data.train)} {of_images(data.train)}, "
        f"{len(data.test)} {of_images(data.test)} {of_tensors([data.test.labels])}",
        "training": asdict(training), "pruning": asdict(pruning), "loss": of_loss(loss), "seed": seed,
    }  # fmt: skip
    del mine["pruning"]["levels"]
    mine = json.loads(json.dumps(mine))
    path = folder / "search.json"
    while True:
        with locked(folder / _LOCK) as free:
            begun = (folder / "level00.json").is_file()
            if path.is_file():
                try:
                    _compare(folder, mine, _noted(path))
                except (PlanError, SourceError) as error:
                    if begun:
                        raise
                    if not free:
                        raise PlanError(f"{error} ({owner(folder / _LOCK)} is working on it)") from error
                    for name in ("rewind.pt", "level00.pt", "next00.pt"):
                        (folder / name).unlink(missing_ok=True)
                else:
                    return mine
            if free:
                with atomic_output(path) as temporary:
                    temporary.write_text(json.dumps(mine, indent=1) + "\n", "utf-8")
                return mine
        time.sleep(LOOK)


def _noted(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path} is damaged: it holds no mapping")
    return found


def _compare(folder: Path, mine: dict[str, Any], found: dict[str, Any]) -> None:
    """PlanError that names in what a search differs from the one that its folder holds."""
    other = [
        f"another {part} ({_difference(entries, found[part])})"
        for part, entries in mine.items()
        if part in found and entries != found[part]
    ]
    if other:
        raise PlanError(f"{folder} holds a search with {' and '.join(other)}; give another folder")
    missing = [part for part in mine if part not in found]
    if missing:
        raise PlanError(
            f"{folder} holds an earlier search, which does not record its {' and '.join(missing)}; "
            "give another folder"
        )


def _difference(now: Any, before: Any) -> str:
    """``steps was 60, now 50``: of mappings only what differs."""
    if not isinstance(now, dict) or not isinstance(before, dict):
        return f"was {before}, now {now}"
    return ", ".join(
        f"{name} was {before.get(name, 'not noted')}, now {now.get(name, 'not known')}"
        for name in [*now, *(name for name in before if name not in now)]
        if name not in now or name not in before or now[name] != before[name]
    )


def _hold(folder: Path, mine: dict[str, Any]) -> None:
    """PlanError where another search has taken the folder while this one trained."""
    if _noted(folder / "search.json") != mine:
        raise PlanError(f"{folder} was taken by another search meanwhile; give each a folder of its own")
