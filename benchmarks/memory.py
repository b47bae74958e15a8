"""Peak memory of emitting a stretched 2 GB module, and of saving it, above what the process holds before.

A residual network of 20 blocks becomes one of 30. Limits: the module that comes out and one unit for ``to_module``,
one unit for ``save``, which streams. Each run is a process of its own, since a peak of memory is one of a process.
Linux only (/proc). Run: ``python -m benchmarks.memory``; it writes 3 GB to the temporary folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import PAIRS, Figures

SOURCE, TARGET, WIDTH = 20, 30, 3584
UNIT = 2 * (WIDTH * WIDTH + WIDTH) * 4


def child(what: str, folder: Path) -> None:
    """Do one thing, and print the bytes of the peak above what was held before."""
    import torch
    from torch import Tensor, nn

    import elastic_ir as eir

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.outer(torch.relu(self.inner(x)))  # type: ignore[no-any-return]

    x = torch.zeros(1, WIDTH)
    blocks = [Block() for _ in range(SOURCE)]
    small = eir.stretch(eir.trace(nn.Sequential(*blocks[:2]), (x,)), to_units=3)
    small.to_module()  # what is imported late is not counted
    if what != "module":
        eir.save(small, folder / f"warm.{what}", check=False)
    graph = eir.stretch(eir.trace(nn.Sequential(*blocks), (x,)), to_units=TARGET)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if what == "module":
        made = graph.to_module()
        assert len(list(made.parameters())) == 4 * TARGET
    else:
        eir.save(graph, folder / f"model.{what}", check=False)
    print(status("VmHWM") - before)


def status(key: str) -> int:
    """Bytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak(what: str) -> int:
    """The peak of a process that does one thing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.memory", what, folder]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    """Print the ratios; 1 where a limit is passed."""
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]))
        return 0
    figures = Figures()
    what = "`to_module()` of a 2 GB network with half as many blocks more: peak relative to the result and one unit"
    allowed = UNIT * (TARGET + 1)
    figures.add(what, [peak("module") / allowed for _ in range(PAIRS)], limit=1)
    for form in ("safetensors", "pt"):
        what = f"saving it as `.{form}`: peak relative to one unit of {UNIT / 1e6:.0f} MB"
        figures.add(what, [peak(form) / UNIT for _ in range(PAIRS)], limit=1)
    return figures.done("torch")


if __name__ == "__main__":
    raise SystemExit(main())
