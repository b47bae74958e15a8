"""Export of a ResNet-56 ticket to a checked ONNX file, against ``torch.onnx.export`` alone.

Ours emits the module, exports and checks with ``onnx.checker`` (full); the peer exports the same module
(``dynamo=True``, with its optimiser) and saves it. Limit: 1.2 times, with ``check=False``; the same with all checks,
which compare two runs in onnxruntime with PyTorch, stands beside it. Then the command line makes sparse files of the
ticket: from its ``.pt``, from its ONNX file, and from files whose pruned weights are -0.0 in half of the places (limit
of each against the dense file: 0.33).
Run: ``python -m benchmarks.onnx_export``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import elastic_ir as eir
from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

LIMIT, SPARSE = 1.2, 0.33


def peer(module: torch.nn.Module, path: Path) -> float:
    """Seconds that PyTorch's exporter takes, as its documentation shows it."""
    image = torch.randn(2, 3, 32, 32)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            module, (image,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
        assert program is not None
        program.save(path)
    return time.perf_counter() - start


def sparse_files(model: torch.nn.Module, folder: Path) -> dict[str, float]:
    """The share of the dense file that each sparse file takes, as a user makes it."""
    masks = magnitude_masks(model, 0.9)
    graph = eir.trace(model, masks=masks)
    dense = save_onnx(graph, folder / "ticket.onnx").size
    eir.save(graph, folder / "ticket.pt")
    signed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in signed.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    eir.save(eir.trace(signed), folder / "negative.pt")
    save_onnx(eir.trace(signed), folder / "negative.onnx")
    shares = {}
    for source in ("ticket.pt", "ticket.onnx", "negative.pt", "negative.onnx"):
        out = folder / f"{source}.sparse.onnx"
        command = [
            sys.executable,
            "-m",
            "elastic_ir.cli",
            "export",
            str(folder / source),
            "--sparse",
            "-o",
            str(out),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shares[source] = out.stat().st_size / dense
    return shares


def main() -> int:
    """Print the ratios; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = cifar_resnet(56).eval()
    graph = eir.trace(model, masks=magnitude_masks(model, 0.9))
    module = graph.to_module().eval()
    ratios, checked, peers = [], [], []
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ours.onnx", Path(name) / "theirs.onnx"
        peer(module, theirs)  # both import a good deal when they are first called
        save_onnx(graph, ours)
        for _ in range(rounds):
            peers.append(peer(module, theirs))
            start = time.perf_counter()
            save_onnx(graph, ours, check=False)
            ratios.append((time.perf_counter() - start) / peers[-1])
            start = time.perf_counter()
            dense = save_onnx(graph, ours)
            checked.append((time.perf_counter() - start) / peers[-1])
        shares = sparse_files(model, Path(name))
    ratio = statistics.median(ratios)
    print(f"torch.onnx.export alone: {statistics.median(peers):.2f} s")
    print(f"ours, check=False: {ratio:.2f} times that (limit {LIMIT})")
    print(f"ours, with all checks: {statistics.median(checked):.2f} times that")
    print(f"largest difference from PyTorch: {dense.difference}")
    for source, share in shares.items():
        print(f"sparse, from {source}: {share:.4f} of the dense {dense.size:,} bytes (limit {SPARSE})")
    return int(not (ratio <= LIMIT and all(share <= SPARSE for share in shares.values())))


if __name__ == "__main__":
    sys.exit(main())
