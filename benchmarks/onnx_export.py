"""Export of a ResNet-56 ticket to a checked ONNX file, against ``torch.onnx.export`` alone.

Ours emits the module, sees every unit run, exports, checks with ``onnx.checker`` (full) and compares a run in
onnxruntime with PyTorch; the peer exports the same module (``dynamo=True``, with its optimiser) and saves it.
Limit: 1.2 times. The sizes of the dense and the sparse file are printed beside it (limit of their ratio: 0.32).
Run: ``python -m benchmarks.onnx_export``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import elastic_ir as eir
from elastic_ir.emit.onnx_save import save_onnx
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

LIMIT, SPARSE = 1.2, 0.32


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
    ratios, peers = [], []
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ours.onnx", Path(name) / "theirs.onnx"
        peer(module, theirs)  # both import a good deal when they are first called
        save_onnx(graph, ours)
        for _ in range(rounds):
            peers.append(peer(module, theirs))
            start = time.perf_counter()
            dense = save_onnx(graph, ours)
            ratios.append((time.perf_counter() - start) / peers[-1])
        sparse = save_onnx(graph, ours, sparse=True)
    ratio, share = statistics.median(ratios), sparse.size / dense.size
    print(f"torch.onnx.export alone: {statistics.median(peers):.2f} s")
    print(f"ours, with all checks: {ratio:.2f} times that (limit {LIMIT})")
    print(f"largest difference from PyTorch: {dense.difference}")
    print(f"dense {dense.size:,} bytes; sparse {sparse.size:,}, {share:.4f} of it (limit {SPARSE})")
    return int(ratio > LIMIT or share > SPARSE)


if __name__ == "__main__":
    sys.exit(main())
