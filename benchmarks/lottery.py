"""What the laboratory costs on top of the trainings that it runs: ``python -m benchmarks.lottery``.

Four ratios, each against something measured in the same run:

- a level of iterative magnitude pruning against its training alone (limit 1.02): rewinding, pruning, the ticket's file;
  the measurement of its accuracy is shown apart, for it is no part of the search;
- a ticket's training step against the dense one (limit 1.03);
- the scheduling of a job that has nothing to do (limit 50 ms);
- a study of single-threaded jobs in two processes against one (at least 1.8 times as fast).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.figures import PAIRS, Figures
from elastic_ir.tickets import magnitude_masks
from elastic_ir.training.data import Data, Split, load_data
from elastic_ir.training.fit import accuracy, fit
from elastic_ir.training.pruning.imp import find_tickets
from elastic_ir.training.settings import Pruning, Training
from elastic_ir.training.studies.executors import InProcess, Processes
from elastic_ir.training.studies.jobs import Job
from elastic_ir.training.studies.run import run
from elastic_ir.training.studies.store import Store
from elastic_ir.zoo import cifar_resnet

STEPS = 150
LEVELS = 3


def images(count: int = 12_800) -> Data:
    """Noise of the size of Fashion-MNIST: what is measured does not depend on what is learnt."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 28, 28, generator=generator)
    split = Split(x, torch.arange(count) % 10)
    return Data(
        "noise", split, Split(x[:1000], split.labels[:1000] if split.labels is not None else None), 10
    )


def network() -> nn.Module:
    """The network that the levels train."""
    torch.manual_seed(0)
    return cifar_resnet(20, width=8)


def level_overhead(data: Data) -> tuple[float, float]:
    """Seconds of whole levels, without measuring accuracy, against seconds of their training; and one measurement."""
    training = Training(steps=STEPS, lr=0.01)
    fit(network(), data, Training(steps=5))  # what happens once in a process
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        levels = find_tickets(network(), data, training, Pruning(LEVELS, rewind=0), Path(folder))
        whole = time.perf_counter() - begun
    begun = time.perf_counter()
    accuracy(network(), data.test)
    measured = time.perf_counter() - begun
    trained = sum(level.seconds for level in levels)
    return (whole - measured * len(levels)) / trained, measured / (trained / len(levels))


def step_ratios(data: Data) -> list[float]:
    """A ticket's training against a dense one, in turns."""
    training = Training(steps=30, lr=0.01)
    masks = magnitude_masks(network(), 0.9)
    ratios = []
    for _ in range(PAIRS):
        dense, sparse = (fit(network(), data, training, masks=given) for given in ({}, masks))
        ratios.append(sparse / dense)
    return ratios


def _jobs(count: int, steps: int) -> list[Job]:
    options = {
        "network": {"factory": "elastic_ir.zoo:cifar_resnet", "depth": 14, "width": 4},
        "data": {"name": "digits", "channels": 3}, "training": {"steps": max(steps, 1), "batch_size": 256},
        "rewind": steps,
    }  # fmt: skip
    return [Job("rewind", {**options, "seed": seed}) for seed in range(count)]


def scheduling() -> float:
    """Seconds of a job that trains for no step, beside what the same work takes as a plain call."""
    load_data("digits", 3)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        run(_jobs(1, 0), store, InProcess(folder))  # imports, and the data
        begun = time.perf_counter()
        run(_jobs(41, 0), store, InProcess(folder))
        return (time.perf_counter() - begun) / 40


def two_processes() -> float:
    """How many times as fast a study is in two processes; their start is left out by a first job in each."""
    seconds = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            executor = Processes(folder, count, threads=1)
            for job in _jobs(20, 2)[-count:]:
                executor.submit(job.spec())
            for _ in range(count):
                executor.wait()
            begun = time.perf_counter()
            run(_jobs(8, 60), Store(folder), executor)
            seconds.append(time.perf_counter() - begun)
    return seconds[0] / seconds[1]


def main() -> int:
    """Print each ratio with its limit; 1 where one is passed."""
    torch.set_num_threads(1)
    data, figures = images(), Figures()
    levels = [level_overhead(data) for _ in range(PAIRS)]
    what = "a level of iterative magnitude pruning, relative to its training alone"
    figures.add(what, [overhead for overhead, _ in levels], limit=1.02)
    figures.add(
        "training of a 90 % sparse ticket, relative to the dense network", step_ratios(data), limit=1.03
    )
    figures.add(
        "scheduling of an empty job", [1000 * scheduling() for _ in range(PAIRS)], limit=50, unit=" ms"
    )
    what = "speed of a study of single-threaded jobs in two processes relative to one"
    figures.add(what, [two_processes() for _ in range(PAIRS)], limit=1.8, at_least=True)
    measuring = statistics.median(share for _, share in levels)
    print(f"(measuring accuracy on 1,000 images takes {measuring:.3f} of a training of {STEPS} steps)")
    return figures.done("torch", "lightning")


if __name__ == "__main__":
    raise SystemExit(main())
