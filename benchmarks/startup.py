"""``elastic-ir --help`` against ``python -c "import click"``. Limit: 1.5 times. Also: what a stretch of a bare
state dict in ``.safetensors`` costs beside ``python -c "import torch"``, which it does not import.

Run: ``python -m benchmarks.startup``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.tensors.torch_bridge import TorchData
from elastic_ir.zoo import cifar_resnet

LIMIT = 1.5


def seconds(arguments: list[str]) -> float:
    """Wall time of a process."""
    begin = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True)
    return time.perf_counter() - begin


def paired(left: list[str], right: list[str], rounds: int = 15) -> float:
    """The median ratio of two commands run in turn."""
    seconds(left), seconds(right)  # the first runs read files from the disk
    return statistics.median(seconds(left) / seconds(right) for _ in range(rounds))


def main() -> int:
    python = sys.executable
    program = str(Path(python).with_name("elastic-ir"))
    ratio = paired([program, "--help"], [python, "-c", "import click"])
    print(f"elastic-ir --help against import click: {ratio:.2f} times (limit {LIMIT})")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.safetensors"
        tensors = {name: TorchData(tensor) for name, tensor in cifar_resnet(32).state_dict().items()}
        eir.save(graph_of_tensors("model", tensors), source)
        target = str(Path(folder) / "deeper.safetensors")
        stretch = [program, "stretch", str(source), "--to-depth", "56", "-o", target]
        beside = paired(stretch, [python, "-c", "import torch"], rounds=5)
        code = "import sys; from elastic_ir import api; api.save(api.stretch(api.load(sys.argv[1]), 56), sys.argv[2]); "
        code += "print('torch' in sys.modules)"
        loaded = subprocess.run(
            [python, "-c", code, str(source), target], check=True, capture_output=True, text=True
        ).stdout.strip()
    print(
        f"stretch of a bare .safetensors against import torch: {beside:.2f} times (torch imported: {loaded})"
    )
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
    return int(ratio > LIMIT or loaded != "False")


if __name__ == "__main__":
    raise SystemExit(main())
