"""Export of a ticket to a checked ONNX file, against ``torch.onnx.export`` alone.

The whole command on a ResNet-32, ``elastic-ir export model.pt``, against a process that makes the network, loads its
state dict and calls ``torch.onnx.export`` (``dynamo=True``, with its optimiser; limit 1.15). The same of a ResNet-56
within one process, with ``check=False`` and with all checks, which compare two runs in onnxruntime with PyTorch
(limits 1.2 and 1.3). Then the command line makes sparse files of the ticket: from its ``.pt``, from its ONNX file, and
from files whose pruned weights are -0.0 in half of the places (limit of each against the dense file: 0.33).
Run: ``python -m benchmarks.onnx_export``.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import elastic_ir as eir
from benchmarks.figures import Figures, process, wall
from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet

COMMAND, LIMIT, CHECKED, SPARSE = 1.15, 1.2, 1.3, 0.33
#: What somebody writes who has torch alone.
PEER = """
import sys, torch
from elastic_ir.zoo import cifar_resnet
model = cifar_resnet(32).eval()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
image = torch.randn(2, 3, 32, 32)
torch.onnx.export(
    model, (image,), sys.argv[2], dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
)
"""


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


def whole_command(figures: Figures, folder: Path) -> None:
    """The command line from a file to a file, and the same by torch alone."""
    model = cifar_resnet(32)
    eir.save(eir.trace(model, masks=magnitude_masks(model, 0.8)), folder / "model.pt")
    ours = [sys.executable, "-m", "elastic_ir.cli", "export", str(folder / "model.pt")]
    theirs = [sys.executable, "-c", PEER, str(folder / "model.pt")]
    figures.ratio(
        "`elastic-ir export` of a ResNet-32 to ONNX with all checks, relative to a process with `torch.onnx.export`",
        lambda: process([*ours, "--force", "-o", str(folder / "ours.onnx")]),
        lambda: process([*theirs, str(folder / "theirs.onnx")]),
        limit=COMMAND,
    )


def main() -> int:
    """Print the ratios; 1 where a limit is passed."""
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = cifar_resnet(56).eval()
    graph = eir.trace(model, masks=magnitude_masks(model, 0.9))
    module = graph.to_module().eval()
    figures = Figures()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole_command(figures, folder)
        for check, limit in ((False, LIMIT), (True, CHECKED)):
            how = "with all checks" if check else "without its checks"
            figures.ratio(
                f"export of a ResNet-56 to ONNX within one process {how}, relative to `torch.onnx.export`",
                lambda check=check: wall(lambda: save_onnx(graph, folder / "ours.onnx", check=check)),  # type: ignore[misc]
                lambda: peer(module, folder / "theirs.onnx"),
                limit=limit,
            )
        shares = sparse_files(model, folder)
    for source, share in shares.items():
        what = f"a 90 % sparse ResNet-56 with sparse initializers, from {source}, relative to the dense ONNX file"
        figures.add(what, [share], limit=SPARSE)
    return figures.done("torch", "onnx", "onnxscript")


if __name__ == "__main__":
    sys.exit(main())
