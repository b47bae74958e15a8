"""The kinds of jobs: what each does with its options, the folders of what it needs, and a folder to write into.

Each is a function of a :class:`Work`; the result is plain data. Everything random is seeded by the options, so a job's
outcome follows from its key, but for the rounding of another machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from elastic_ir.analysis.pruning.flops import fixed_step
from elastic_ir.tickets import sparsity
from elastic_ir.training.callbacks import save_state
from elastic_ir.training.checks import check_fit
from elastic_ir.training.connectivity import barrier
from elastic_ir.training.fit import Engine, fit, logger_in, measured
from elastic_ir.training.pruning.imp import train_level
from elastic_ir.training.settings import Log, Pruning
from elastic_ir.training.studies.methods import of_method
from elastic_ir.training.studies.store import Store
from elastic_ir.training.studies.tweaks import tweaked
from elastic_ir.training.studies.work import Work

Result = dict[str, Any]


def execute(spec: Mapping[str, Any], folder: str, threads: int = 0, log: Log = "") -> Result | None:
    """Do a job of a store, unless it is done, and return its result; for any process that sees the store.

    None where another process is doing it: its result will be there, or the job will be free again.
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


def _do(spec: Mapping[str, Any], store: Store, log: Log) -> None:
    with store.workspace(spec) as place:
        needs = {role: store.path(key) for role, key in spec["needs"].items()}
        engine = Engine(logger=logger_in(log, place)) if log else Engine()
        result = KINDS[spec["kind"]](Work(spec["options"], needs, place, engine))
        store.write_result(place, result)


def rewind(work: Work) -> Result:
    """From initialization to the rewind point."""
    network, data, training, steps = work.network, work.data, work.training, work.options["rewind"]
    check_fit(network, data, training, work.loss)  # all other jobs of the network need this one
    seconds = fit(network, data, training, order=work.seed, stop=steps, loss=work.loss, engine=work.engine)
    save_state(network.state_dict(), work.place / "state.pt")
    flops = fixed_step(work.cost(network).dense) * steps * training.batch_size
    return {"seconds": seconds, "flops": flops}


def level(work: Work) -> Result:
    """One level of iterative magnitude pruning: train the ticket, measure it, prune what it has learnt."""
    number, training = work.options["number"], work.training
    pruning = Pruning(number + 1, work.options["rewind"], work.options["share"], tuple(work.leave_out))
    saved = work.tensors("level", "next.pt") if "level" in work.needs else {}
    masks = {name: mask.bool() for name, mask in saved.items()}
    seconds, score = train_level(
        work.network, work.tensors("rewind", "state.pt"), masks, work.data, training, pruning, number,
        order=work.seed, ticket=work.place / "ticket.pt", following=work.place / "next.pt", loss=work.loss,
        engine=work.engine,
    )  # fmt: skip
    sparse = work.cost(work.network).sparse(masks)
    flops = fixed_step(sparse) * (training.steps - pruning.rewind) * training.batch_size
    return {score.measure: score.value, "seconds": seconds, "flops": flops, **_sparsities(masks)}


def train(work: Work) -> Result:
    """A ticket made by some method, trained from the rewind point to the end."""
    data, training, options = work.data, work.training, work.options
    work.network.load_state_dict(work.tensors("rewind", "state.pt"))
    start = tweaked(of_method(work), options.get("tweaks", ()), work)
    seconds = fit(
        start.network, data, training, order=options.get("order", work.seed), start=options["rewind"],
        masks=start.masks, loss=start.loss, callbacks=start.callbacks, engine=work.engine,
    )  # fmt: skip
    masks = start.final_masks()
    trained = start.finished()
    score = measured(trained, data.test, work.loss, engine=work.engine)
    if options.get("keep"):
        save_state(trained.state_dict(), work.place / "trained.pt")
    flops = start.flops(data, (training.steps - options["rewind"]) * training.batch_size)
    return {
        score.measure: score.value, "seconds": seconds, "flops": flops, "scoring": start.scoring,
        **_sparsities(masks),
    }  # fmt: skip


def connect(work: Work) -> Result:
    """The error along the line between two trainings of one ticket."""
    one, two = (work.tensors(role, "trained.pt") for role in ("one", "two"))
    found = barrier(
        work.network, one, two, work.data, points=work.options["points"], engine=work.engine, loss=work.loss
    )
    reached = json.loads((work.needs["one"] / "result.json").read_text())["sparsity"]
    every = "accuracies" if found.measure == "accuracy" else "losses"
    return {
        "shares": found.shares, every: found.values, found.measure: found.worst, "barrier": found.height,
        "sparsity": reached, "seconds": 0.0, "flops": 0.0,
    }  # fmt: skip


def _sparsities(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """In total and for each layer, as shares of zeros."""
    layers = {name: 1 - float(mask.count_nonzero()) / mask.numel() for name, mask in masks.items()}
    return {"sparsity": sparsity(masks), "layers": layers}


KINDS: dict[str, Callable[[Work], Result]] = {
    "rewind": rewind,
    "level": level,
    "train": train,
    "connect": connect,
}
