"""Whole commands against the import that they do without, in interleaved pairs of processes.

``elastic-ir --help`` against ``python -c "import click"`` (limit 1.5 times), and ``stretch`` and ``inspect`` of a bare
state dict, in ``.safetensors`` and in ``.pt``, against ``python -c "import torch"`` (limit 0.2 times), which none of
them imports.

Run: ``python -m benchmarks.startup``.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from elastic_ir.zoo import cifar_resnet

HELP, BARE = 1.5, 0.2  # limits
ROUNDS = 9
CODE = """
import sys
from elastic_ir.cli.app import elastic_ir
elastic_ir(sys.argv[1:], standalone_mode=False)
raise SystemExit("torch" in sys.modules)
"""


def seconds(arguments: list[str]) -> float:
    """Wall time of a process that has to succeed."""
    begin = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True)
    return time.perf_counter() - begin


def paired(name: str, left: list[str], imported: str, limit: float) -> bool:
    """Print the ratios of a command and an import run in turn; whether the median keeps to the limit."""
    right = [sys.executable, "-c", f"import {imported}"]
    seconds(left), seconds(right)  # the first runs read files from the disk
    ratios = sorted(seconds(left) / seconds(right) for _ in range(ROUNDS))
    median = statistics.median(ratios)
    print(
        f"{name} against import {imported}: {median:.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f}; limit {limit})"
    )
    return median <= limit


def main() -> int:
    """Print the ratios; 1 where a limit is passed, or a command imported torch."""
    program = str(Path(sys.executable).with_name("elastic-ir"))
    fine = [paired("elastic-ir --help", [program, "--help"], "click", HELP)]
    with tempfile.TemporaryDirectory() as folder:
        state = cifar_resnet(32).state_dict()
        save_file(state, Path(folder) / "model.safetensors")
        torch.save(state, Path(folder) / "model.pt")
        for suffix in (".safetensors", ".pt"):
            source, target = str(Path(folder) / f"model{suffix}"), str(Path(folder) / f"deeper{suffix}")
            for command in (["stretch", source, "--to-depth", "56", "-o", target], ["inspect", source]):
                name = f"{command[0]} of a bare {suffix}"
                fine.append(paired(name, [program, *command], "torch", BARE))
                without = subprocess.run(
                    [sys.executable, "-c", CODE, *command], check=False, capture_output=True
                )
                fine.append(without.returncode == 0)
                if without.returncode:
                    print(f"{name} failed, or imported torch")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    return int(not all(fine))


if __name__ == "__main__":
    raise SystemExit(main())
