"""Whole commands against the import that they do without, in interleaved pairs of processes.

``elastic-ir --help`` against ``python -c "import click"``, and against ``python -c "import torch"``: ``stretch`` and
``inspect`` of a bare state dict, and ``stretch``, ``inspect`` and ``diff`` of a file of ours, which has its graph. Only
the run of the result before it gets its name takes torch; no other command imports it.

Run: ``python -m benchmarks.startup``. Compiled files of Python (``.pyc``) are written, whatever the environment says.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import elastic_ir as eir
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

#: Goals, in times of the import: click's for --help, else torch's.
HELP, BARE, OWN, CHECKED = 1.15, 0.2, 0.25, 1.1
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
CODE = """
import sys
from elastic_ir.cli.app import elastic_ir
elastic_ir(sys.argv[1:], standalone_mode=False)
raise SystemExit("torch" in sys.modules)
"""


def run(arguments: list[str], check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """A process, which has to succeed unless told otherwise."""
    return subprocess.run(arguments, check=check, capture_output=True, env=ENVIRONMENT)


def seconds(arguments: list[str]) -> float:
    """Wall time of a process that has to succeed."""
    begin = time.perf_counter()
    run(arguments)
    return time.perf_counter() - begin


def paired(name: str, left: list[str], imported: str, goal: float, rounds: int) -> bool:
    """Print the ratios of a command and an import run in turn; whether the median reaches the goal."""
    right = [sys.executable, "-c", f"import {imported}"]
    seconds(left), seconds(right)  # the first runs read files from the disk
    ratios = sorted(seconds(left) / seconds(right) for _ in range(rounds))
    median = statistics.median(ratios)
    figures = f"{ratios[0]:8.2f} {median:8.2f} {ratios[-1]:8.2f} {goal:8.2f}"
    print(f"{name:44} {figures}  {'' if median <= goal else 'not reached'}", flush=True)
    return median <= goal


def commands(folder: Path) -> list[tuple[str, list[str], float]]:
    """The commands with what they do, and the goal of each, over files that are written here."""
    network = cifar_resnet(32)
    save_file(network.state_dict(), folder / "bare.safetensors")
    torch.save(network.state_dict(), folder / "bare.pt")
    graph = eir.trace(network, torch.zeros(1, 3, 32, 32), masks=magnitude_masks(network, 0.8))
    found: list[tuple[str, list[str], float]] = []

    def add(what: str, goal: float, *command: str) -> None:
        found.append((f"{command[0]} of {what}", list(command), goal))

    for suffix in (".safetensors", ".pt"):
        source = str(folder / f"bare{suffix}")
        add(f"a bare {suffix}", BARE, "stretch", source, "--to-depth", "56", "-o", str(folder / f"b{suffix}"))
        add(f"a bare {suffix}", BARE, "inspect", source)
    for suffix in (".pt", ".ticket"):
        source, goal = str(folder / f"own{suffix}"), str(folder / f"deep{suffix}")
        eir.save(graph, source)
        stretched = ("stretch", source, "--to-depth", "56", "-o", goal)
        add(f"our {suffix}", CHECKED, *stretched)
        add(f"our {suffix}, --no-check", OWN, *stretched, "--no-check")
        add(f"our {suffix}", OWN, "inspect", source)
        add(f"our {suffix}", OWN, "diff", source, str(folder / "own.pt"))
    return found


def main() -> int:
    """Print the ratios; 1 where a goal is not reached, or a command imported torch that should not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    program = str(Path(sys.executable).with_name("elastic-ir"))
    print(
        f"{'times the import of torch, of click for --help':44} {'minimum':>8} {'median':>8} {'maximum':>8} {'goal':>8}"
    )
    fine = [paired("--help", [program, "--help"], "click", HELP, rounds)]
    with tempfile.TemporaryDirectory() as folder:
        for name, command, goal in commands(Path(folder)):
            fine.append(paired(name, [program, *command], "torch", goal, rounds))
            if goal < 1:
                without = run([sys.executable, "-c", CODE, *command], check=False)
                fine.append(without.returncode == 0)
                if without.returncode:
                    print(f"{name} failed, or imported torch")
    print(
        f"{rounds} pairs each, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    return int(not all(fine))


if __name__ == "__main__":
    raise SystemExit(main())
