"""Stretching a 400 MB ONNX file into another, against copying the file that comes out; and the memory it takes.

Limits: 1.2 times the copy (both to disk, with fsync), and a peak of 60 MB above the interpreter with its imports, for
weights inside the file and outside of it.
Each run is a process of its own, since a peak of memory is one of a process. Linux only (/proc).
Run: ``python -m benchmarks.onnx_stretch``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import PAIRS, Figures

LIMIT = 1.2
PEAK = 60  # MB
BLOCKS, WIDTH = 25, 1024


def make(path: Path, external: bool = False) -> None:
    """A residual network of linear layers, 16 MB in each block, with its weights inside or in ``NAME.data``."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for block in range(BLOCKS):
        inner = value
        for layer in ("fc1", "fc2", "fc3", "fc4"):
            name = f"blocks.{block}.{layer}.weight"
            array = generator.standard_normal((WIDTH, WIDTH), dtype=np.float32)
            weights.append(numpy_helper.from_array(array, name))
            scope = f"/blocks/blocks.{block}/{layer}"
            nodes.append(helper.make_node("MatMul", [inner, name], [f"{scope}/out"], name=f"{scope}/MatMul"))
            nodes.append(helper.make_node("Relu", [f"{scope}/out"], [f"{scope}/relu"], name=f"{scope}/Relu"))
            inner = f"{scope}/relu"
        out = f"/blocks/blocks.{block}/sum"
        nodes.append(helper.make_node("Add", [value, inner], [out], name=f"/blocks/blocks.{block}/Add"))
        value = out
    nodes.append(helper.make_node("Identity", [value], ["y"], name="/Identity"))
    ends = [helper.make_tensor_value_info(name, 1, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data" if external else None)


def child(source: Path, target: Path) -> None:
    """Stretch once; prints seconds and the peak of memory above what the imports took, in MB."""
    import onnx  # noqa: F401

    import elastic_ir as eir

    before = status("VmRSS")
    start = time.perf_counter()
    eir.save(eir.stretch(eir.load(source), to_units=BLOCKS + 2), target)
    seconds = time.perf_counter() - start
    print(seconds, (status("VmHWM") - before) / 1024)


def status(key: str) -> int:
    """A line of this process's memory, in kB; getrusage would count what the parent had before the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def copy_to_disk(source: Path, target: Path) -> float:
    """Seconds to copy a file, and its external data if any, and have it on the disk."""
    start = time.perf_counter()
    for end in ("", ".data"):
        if Path(f"{source}{end}").exists():
            shutil.copyfile(f"{source}{end}", f"{target}{end}")
            with open(f"{target}{end}", "rb") as file:
                os.fsync(file.fileno())
    return time.perf_counter() - start


def main() -> int:
    """Print the figures; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=PAIRS)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    figures = Figures()
    with tempfile.TemporaryDirectory() as name:
        for place in ("inside", "outside"):
            source, target, twin = (
                Path(name) / f"{place}-{part}.onnx" for part in ("source", "target", "copy")
            )
            make(source, external=place == "outside")
            command = [sys.executable, "-m", "benchmarks.onnx_stretch", "--child", str(source), str(target)]
            peaks: list[float] = []

            def ours(command: list[str] = command, peaks: list[float] = peaks) -> float:
                seconds, peak = map(float, subprocess.check_output(command, text=True).split())
                peaks.append(peak)
                return seconds

            what = f"ONNX file of 400 MB, weights {place}, stretched"
            figures.ratio(
                f"{what}, relative to a copy of the result",
                ours,
                lambda target=target, twin=twin: copy_to_disk(target, twin),  # type: ignore[misc]
                limit=LIMIT,
                rounds=options.rounds,
            )
            figures.add(f"{what}: peak of memory above the imports", peaks, limit=PEAK, unit=" MB")
            for file in Path(name).iterdir():
                file.unlink()
    return figures.done("onnx")


if __name__ == "__main__":
    sys.exit(main())
