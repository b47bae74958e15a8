"""Whole commands against the import that they do without, in interleaved pairs of processes.

``elastic-ir --help`` against ``python -c "import click"``, and against ``python -c "import torch"``: ``stretch`` and
``inspect`` of a bare state dict, and ``stretch``, ``inspect`` and ``diff`` of a file of ours, which has its graph. Only
the run of the result before it gets its name takes torch; no other command imports it.

Run: ``python -m benchmarks.startup``. Compiled files of Python (``.pyc``) are written, whatever the environment says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import elastic_ir as eir
from benchmarks.figures import Figures, process
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

#: Goals, in times of the import: click's for --help, else torch's.
HELP, BARE, OWN, CHECKED = 1.15, 0.2, 0.25, 1.1
ROUNDS = 9
CODE = """
import sys
from elastic_ir.cli.app import elastic_ir
elastic_ir(sys.argv[1:], standalone_mode=False)
raise SystemExit("torch" in sys.modules)
"""


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
        add(
            f"a bare {suffix}",
            BARE,
            "stretch",
            source,
            "--to-depth",
            "56",
            "-o",
            str(folder / f"b{suffix}"),
            "--force",
        )
        add(f"a bare {suffix}", BARE, "inspect", source)
    for suffix in (".pt", ".ticket"):
        source, goal = str(folder / f"own{suffix}"), str(folder / f"deep{suffix}")
        eir.save(graph, source)
        stretched = ("stretch", source, "--to-depth", "56", "-o", goal, "--force")
        add(f"our {suffix}", CHECKED, *stretched)
        add(f"our {suffix}, --no-check", OWN, *stretched, "--no-check")
        add(f"our {suffix}", OWN, "inspect", source)
        add(f"our {suffix}", OWN, "diff", source, str(folder / "own.pt"))
    return found


def main() -> int:
    """Print the ratios; 1 where a goal is not reached, or a command imported torch that should not."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    program, figures, fine = str(Path(sys.executable).with_name("elastic-ir")), Figures(), True

    def add(name: str, command: list[str], imported: str, goal: float) -> None:
        ours, peer = [program, *command], [sys.executable, "-c", f"import {imported}"]
        what = f'{name}, relative to `python -c "import {imported}"`'
        figures.ratio(what, lambda: process(ours), lambda: process(peer), limit=goal, rounds=ROUNDS)

    add("`elastic-ir --help`", ["--help"], "click", HELP)
    with tempfile.TemporaryDirectory() as folder:
        for name, command, goal in commands(Path(folder)):
            add(name, command, "torch", goal)
            if goal < 1:
                without = subprocess.run(
                    [sys.executable, "-c", CODE, *command], check=False, capture_output=True
                )
                fine = fine and without.returncode == 0
                if without.returncode:
                    print(f"{name} failed, or imported torch")
    return figures.done("torch", "click") or int(not fine)


if __name__ == "__main__":
    raise SystemExit(main())
