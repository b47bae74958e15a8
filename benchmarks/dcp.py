"""A training checkpoint of four ranks stretched from 22 to 32 layers, against copying what comes out with ``cp -r``.

A random Llama and its AdamW moments, as torch's own writer saves them. Limits: twice ``cp -r`` of the result for half a
gigabyte and more (below that, start-up dominates), and a peak of 80 MB resident. Each run is a separate process, start
and imports included. Linux only.
Run: ``python -m benchmarks.dcp --folder /dev/shm`` (1 GB; 4.5 GB of room).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

from benchmarks.figures import Figures, pairs, process_with_peak

LIMIT, PEAK = 2, 80  # times cp -r, MB
LAYERS, PLAN, RANKS = 22, "0-15,6-21", 4
TOKENS = 4_000
MOMENTS = ("exp_avg", "exp_avg_sq")


def make(folder: Path, size: float) -> None:
    """A checkpoint of about so many bytes."""
    import torch

    from tests.checkpoints.dcp_folders import save_sharded

    # TinyLlama's proportions, as in benchmarks.gguf; a layer has 10.5 times width squared elements, each three times
    width = max(64, round((size / 12 / LAYERS / 10.5) ** 0.5 / 64) * 64)
    inner, narrow = width * 11 // 4, width // 8
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (TOKENS, width)}
    for layer in range(LAYERS):
        held = {
            "attention.wq": (width, width), "attention.wk": (narrow, width), "attention.wv": (narrow, width),
            "attention.wo": (width, width), "feed_forward.w1": (inner, width), "feed_forward.w2": (width, inner),
            "feed_forward.w3": (inner, width), "attention_norm": (width,), "ffn_norm": (width,),
        }  # fmt: skip
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in held.items()}
    shapes |= {"norm.weight": (width,), "output.weight": (TOKENS, width)}
    weights = {name: torch.rand(shape) for name, shape in shapes.items()}
    moments = {
        f"state.{name}.{kind}": torch.rand(shape) for name, shape in shapes.items() for kind in MOMENTS
    }
    groups = {f"param_groups.{name}.lr": 1e-3 for name in shapes}
    save_sharded({"model": weights, "optim": {**moments, **groups}, "step": 1000}, folder, RANKS)


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> int:
    """Print the figures; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bytes", type=float, default=1e9)
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder otherwise")
    options = parser.parse_args()
    figures = Figures()
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, target, twin = (Path(name, which) for which in ("step-1000", "deeper", "twin"))
        maker = get_context("spawn").Process(target=make, args=(source, options.bytes))
        maker.start()  # apart, since a process begins with the peak of the one that starts it
        maker.join()

        def stretch() -> float:
            shutil.rmtree(target, ignore_errors=True)
            arguments = ["stretch", str(source), "--plan", PLAN, "-o", str(target)]
            seconds, peak = process_with_peak([sys.executable, "-m", "elastic_ir.cli", *arguments])
            peaks.append(peak)
            return seconds

        def copy() -> float:
            seconds = process_with_peak(["cp", "-r", str(target), str(twin)])[0]
            shutil.rmtree(twin)
            return seconds

        found = pairs(stretch, copy)
        size = size_of(target)
        process_with_peak([sys.executable, "-m", "elastic_ir.cli", "verify", str(target)])
    print(
        f"{LAYERS} to {LAYERS + 10} layers, {RANKS} ranks, {size / 1e9:.2f} GB out; cp -r took "
        f"{min(b for _, b in found):.2f} s"
    )
    figures.add(
        "a training checkpoint of four ranks stretched from 22 to 32 layers (1 GB with AdamW's moments), relative to "
        "`cp -r` of the result",
        [ours / theirs for ours, theirs in found],
        limit=LIMIT if options.bytes >= 5e8 else float("inf"),
    )
    figures.add(
        "peak memory of stretching such a checkpoint, imports included", peaks[1:], limit=PEAK, unit=" MB"
    )
    return figures.done("torch")


if __name__ == "__main__":
    sys.exit(main())
