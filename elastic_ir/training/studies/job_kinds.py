"""The kinds of jobs: what each does with its options, the folders of what it needs, and a folder to write into.

Each is a function (options, needs, place, engine) -> result; the result is plain data. Everything random is seeded
by the options, so a job's outcome follows from its key, but for the rounding of another machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastic_ir.analysis.pruning.flops import fixed_step, forward_cost
from elastic_ir.tickets import sparsity
from elastic_ir.training.callbacks import save_state
from elastic_ir.training.checks import check_fit
from elastic_ir.training.connectivity import barrier
from elastic_ir.training.data import Data, load_data
from elastic_ir.training.fit import Engine, fit, logger_in, measured
from elastic_ir.training.pruning.imp import train_level
from elastic_ir.training.settings import Pruning, Training, read
from elastic_ir.training.studies.methods import starting_point
from elastic_ir.training.studies.names import build, loss_of
from elastic_ir.training.studies.store import Store

Options = Mapping[str, Any]
Folders = Mapping[str, Path]


def execute(spec: Mapping[str, Any], folder: str, threads: int = 0, log: str = "") -> dict[str, Any] | None:
    """Do a job of a store, unless it is done, and return its result; for any process that sees the store.

    None where another process is at it: its result will be there, or the job will be free again.
    ``log`` is "csv" or "tensorboard": Lightning's logger then writes into the job's folder, below ``log``.
    """
    if threads:
        torch.set_num_threads(threads)
    store = Store(folder)
    if not store.has(spec["key"]):
        with store.locked(spec["key"]) as mine:
            if not mine:
                return None
            if not store.has(spec["key"]):  # else it was finished between the two looks
                _do(spec, store, log)
    return store.result(spec["key"])


def _do(spec: Mapping[str, Any], store: Store, log: str) -> None:
    with store.workspace(spec) as place:
        needs = {role: store.path(key) for role, key in spec["needs"].items()}
        engine = Engine(logger=logger_in(log, place)) if log else Engine()
        result = KINDS[spec["kind"]](spec["options"], needs, place, engine)
        store.write_result(place, result)


@lru_cache(maxsize=2)
def _data(name: str, channels: int, limit: int) -> Data:
    return load_data(name, channels, limit)


def data_of(options: Options) -> Data:
    """The data of a job; held by the process, since the next job most likely wants the same."""
    entry = options["data"]
    return _data(entry["name"], entry.get("channels", 0), entry.get("limit", 0))


def _training(options: Options) -> Training:
    return read(Training, options["training"], "training")


def rewind(options: Options, needs: Folders, place: Path, engine: Engine) -> dict[str, Any]:
    """From initialization to the rewind point."""
    network, data, training, loss = build(options), data_of(options), _training(options), loss_of(options)
    check_fit(network, data, training, loss)  # all other jobs of the network need this one
    seconds = fit(
        network, data, training, order=options["seed"], stop=options["rewind"], loss=loss, engine=engine
    )
    save_state(network.state_dict(), place / "state.pt")
    cost = forward_cost(network, data.example(network))
    return {"seconds": seconds, "flops": fixed_step(cost.dense) * options["rewind"] * training.batch_size}


def _masks(folder: Path | None, file: str = "next.pt") -> dict[str, Tensor]:
    if folder is None:
        return {}
    return {name: mask.bool() for name, mask in torch.load(folder / file, weights_only=True).items()}


def level(options: Options, needs: Folders, place: Path, engine: Engine) -> dict[str, Any]:
    """One level of iterative magnitude pruning: train the ticket, measure it, prune what it has learnt."""
    network, data, training = build(options), data_of(options), _training(options)
    pruning = Pruning(options["number"] + 1, options["rewind"], options["share"], tuple(options["leave_out"]))
    rewound = torch.load(needs["rewind"] / "state.pt", weights_only=True)
    masks = _masks(needs.get("level"))
    seconds, score = train_level(
        network, rewound, masks, data, training, pruning, options["number"], order=options["seed"],
        ticket=place / "ticket.pt", following=place / "next.pt", loss=loss_of(options), engine=engine,
    )  # fmt: skip
    cost = forward_cost(network, data.example(network))
    flops = fixed_step(cost.sparse(masks)) * (training.steps - pruning.rewind) * training.batch_size
    return {score.measure: score.value, "seconds": seconds, "flops": flops, **_sparsities(masks)}


def train(options: Options, needs: Folders, place: Path, engine: Engine) -> dict[str, Any]:
    """A ticket made by some method, trained from the rewind point to the end."""
    network, data, training = build(options), data_of(options), _training(options)
    network.load_state_dict(torch.load(needs["rewind"] / "state.pt", weights_only=True))
    point = starting_point(network, data, training, options, needs, loss=loss_of(options))
    seconds = fit(
        point.network, data, training, order=options.get("order", options["seed"]), start=options["rewind"],
        masks=point.masks, loss=point.loss, callbacks=point.callbacks, engine=engine,
    )  # fmt: skip
    masks = point.final_masks()
    trained = point.finished()
    score = measured(trained, data.test, loss_of(options), engine=engine)
    if options.get("keep"):
        save_state(trained.state_dict(), place / "trained.pt")
    flops = point.flops(data, (training.steps - options["rewind"]) * training.batch_size)
    return {
        score.measure: score.value,
        "seconds": seconds,
        "flops": flops,
        "scoring": point.scoring,
        **_sparsities(masks),
    }


def connect(options: Options, needs: Folders, place: Path, engine: Engine) -> dict[str, Any]:
    """The error along the line between two trainings of one ticket."""
    network, data = build(options), data_of(options)
    ends = [torch.load(needs[role] / "trained.pt", weights_only=True) for role in ("one", "two")]
    found = barrier(
        network, ends[0], ends[1], data, points=options["points"], engine=engine, loss=loss_of(options)
    )
    reached = json.loads((needs["one"] / "result.json").read_text())["sparsity"]
    line: dict[str, Any] = (
        {"losses": found.losses, "loss": max(found.losses)}
        if found.losses
        else {"accuracies": found.accuracies, "accuracy": min(found.accuracies)}
    )
    return {"shares": found.shares, **line, "barrier": found.height, "sparsity": reached,
            "seconds": 0.0, "flops": 0.0}  # fmt: skip


def _sparsities(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """In total and for each layer, as shares of zeros."""
    layers = {name: 1 - float(mask.count_nonzero()) / mask.numel() for name, mask in masks.items()}
    return {"sparsity": sparsity(masks), "layers": layers}


KINDS: dict[str, Callable[[Options, Folders, Path, Engine], dict[str, Any]]] = {
    "rewind": rewind,
    "level": level,
    "train": train,
    "connect": connect,
}
