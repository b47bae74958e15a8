"""The size of a 90 % sparse ResNet-56 as a ticket file, against the dense files. Limit: 0.16 of each.

For comparison, the size of the sparse-bitmask layout of compressed-tensors for the same weights: for each row of the
last dimension a whole number of bytes of bits, and an int64 offset.

Run: ``python -m benchmarks.ticket_file``.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import elastic_ir as eir
from benchmarks.figures import Figures
from elastic_ir.tickets.magnitude import magnitude_masks
from elastic_ir.zoo import cifar_resnet

LIMIT = 0.16
SPARSITY = 0.9


def bitmask_layout(path: Path, state: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> int:
    """The bytes of a file with NAME.compressed, .bitmask, .row_offsets and .shape for each masked weight."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name not in masks:
            tensors[name] = tensor
            continue
        *rows, last = tensor.shape
        tensors[f"{name}.compressed"] = tensor[masks[name]]
        tensors[f"{name}.bitmask"] = torch.zeros(prod(rows), -(-last // 8), dtype=torch.uint8)
        tensors[f"{name}.row_offsets"] = torch.zeros(rows, dtype=torch.int64)
        tensors[f"{name}.shape"] = torch.tensor(tensor.shape)
    save_file(tensors, path)
    offsets = sum(t.nbytes for n, t in tensors.items() if n.endswith(".row_offsets"))
    bits = sum(t.nbytes for n, t in tensors.items() if n.endswith(".bitmask"))
    print(f"  of the bitmask layout: bits {bits:,}, row offsets {offsets:,}")
    return path.stat().st_size


def shares(path: Path) -> str:
    """How the bytes of a ticket file are distributed, as text."""
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    parts = {"kept": 0, "mask": 0, "whole": 0}
    with safe_open(path, "pt") as file:
        metadata = {name: len(text) for name, text in file.metadata().items()}
        for name in file.keys():  # noqa: SIM118 - it is not a mapping
            kind = name.rpartition(":")[2] if ":" in name else "whole"
            parts[kind] += file.get_tensor(name).nbytes
    table = {
        "survivors": parts["kept"],
        "mask bits": parts["mask"],
        "unmasked tensors": parts["whole"],
        "graph": metadata["elastic_ir.graph.zlib"],
        "index": metadata["elastic_ir.ticket"],
        "names and offsets": header - sum(metadata.values()),
    }
    whole = path.stat().st_size
    return ", ".join(f"{name} {size:,} ({size / whole:.1%})" for name, size in table.items())


def milliseconds(call: Callable[[], object], rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def main() -> int:
    torch.manual_seed(0)
    model = cifar_resnet(56)
    masks = magnitude_masks(model, SPARSITY)
    graph = eir.trace(model, masks=masks)
    state = graph.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ticket = place / "a.ticket"
        eir.save(graph, ticket)
        eir.save(graph, place / "ours.safetensors")  # its masks, in another file, are not counted
        save_file(state, place / "bare.safetensors")
        torch.save(state, place / "state.pt")
        size = ticket.stat().st_size
        figures = Figures()
        print(f"ResNet-56, {graph.sparsity():.1%} sparse: {size:,} bytes as a ticket file")
        for name, what in (
            ("ours.safetensors", "the dense `.safetensors` that `save` writes"),
            ("bare.safetensors", "the dense `.safetensors` without a graph"),
            ("state.pt", "the dense state dict of `torch.save`"),
        ):
            dense = os.path.getsize(place / name)
            figures.add(
                f"a 90 % sparse ResNet-56 as a `.ticket` file, relative to {what}",
                [size / dense],
                limit=LIMIT,
            )
        print(f"  shares: {shares(ticket)}")
        theirs = bitmask_layout(place / "bitmask.safetensors", state, masks)
        bare = os.path.getsize(place / "bare.safetensors")
        print(
            f"{theirs / bare:.3f} of the dense .safetensors without a graph: sparse-bitmask, {theirs:,} bytes"
        )
        read = milliseconds(lambda: eir.load(ticket).state_dict())
        beside = milliseconds(lambda: eir.load(place / "ours.safetensors").state_dict())
        print(
            f"loaded and expanded in {read:.0f} ms; the dense .safetensors with its masks in {beside:.0f} ms"
        )
    return figures.done("torch", "safetensors")


if __name__ == "__main__":
    raise SystemExit(main())
