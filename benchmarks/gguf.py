"""A random Llama in Q8_0 stretched from 22 to 32 layers as a GGUF file, against copying what comes out with ``cp``.

Limits: 1.3 times ``cp`` of the result for half a billion parameters and more (below that, start-up dominates), and a
peak of 60 MB resident. Each run is a separate process, start and imports included. Linux only.
Run: ``python -m benchmarks.gguf --folder /dev/shm`` (1.1 billion parameters, the size of TinyLlama; 4.5 GB of room).
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figures, pairs, process_with_peak

LIMIT, PEAK = 1.3, 60  # times cp, MB
LAYERS, PLAN = 22, "0-15,6-21"
TOKENS = 32_000
F32, Q8_0 = 0, 8
UINT32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    """A text as the format has it."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def make(path: Path, parameters: float) -> None:
    """A Llama of about so many parameters, of random bytes, with a tokenizer of 32,000 words."""
    # TinyLlama's proportions: 2048 wide, 5632 in the MLP, 4 of 32 heads for keys and values
    width = max(64, round(2048 * (parameters / 1.1e9) ** 0.5 / 64) * 64)
    inner, narrow = width * 11 // 4, width // 8
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (TOKENS, width)}
    for layer in range(LAYERS):
        held: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,), "ffn_down": (width, inner), "ffn_gate": (inner, width), "ffn_up": (inner, width),
            "ffn_norm": (width,), "attn_k": (narrow, width), "attn_output": (width, width), "attn_q": (width, width),
            "attn_v": (narrow, width),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in held.items()}
    shapes |= {"output_norm.weight": (width,), "output.weight": (TOKENS, width)}
    words = [text(f"word{number}") for number in range(TOKENS)]
    entries = [
        text("general.architecture") + struct.pack("<I", STRING) + text("llama"),
        text("llama.block_count") + struct.pack("<II", UINT32, LAYERS),
        text("llama.embedding_length") + struct.pack("<II", UINT32, width),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, TOKENS) + b"".join(words),
        text("tokenizer.ggml.merges") + struct.pack("<IIQ", ARRAY, STRING, TOKENS) + b"".join(words),
    ]
    infos, at = [], 0
    for name, shape in shapes.items():
        kind, size = (Q8_0, shape[0] * shape[1] // 32 * 34) if len(shape) > 1 else (F32, 4 * shape[0])
        extents = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(text(name) + extents + struct.pack("<IQ", kind, at))
        at += -(-size // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries) + b"".join(infos)
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for begin in range(0, at, 1 << 20):
            file.write(os.urandom(min(1 << 20, at - begin)))


def main() -> int:
    """Print the figures; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=float, default=1.1e9)
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder otherwise")
    options = parser.parse_args()
    figures = Figures()
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, target, twin = (Path(name) / f"{part}.gguf" for part in ("source", "target", "copy"))
        make(source, options.parameters)

        def stretch() -> float:
            target.unlink(missing_ok=True)
            arguments = ["stretch", str(source), "--plan", PLAN, "-o", str(target)]
            seconds, peak = process_with_peak([sys.executable, "-m", "elastic_ir.cli", *arguments])
            peaks.append(peak)
            return seconds

        def copy() -> float:
            twin.unlink(missing_ok=True)
            seconds = process_with_peak(["cp", str(target), str(twin)])[0]
            twin.unlink()
            return seconds

        found = pairs(stretch, copy)
        size = target.stat().st_size
        process_with_peak([sys.executable, "-m", "elastic_ir.cli", "verify", str(target)])
    print(
        f"{LAYERS} to {LAYERS + 10} layers, {size / 1e9:.2f} GB out; cp took {min(b for _, b in found):.2f} s"
    )
    figures.add(
        "a GGUF file in Q8_0 stretched from 22 to 32 layers (1.1 billion parameters), relative to `cp` of the result",
        [ours / theirs for ours, theirs in found],
        limit=LIMIT if options.parameters >= 5e8 else float("inf"),
    )
    figures.add("its peak memory, imports included", peaks[1:], limit=PEAK, unit=" MB")
    return figures.done("gguf")


if __name__ == "__main__":
    sys.exit(main())
