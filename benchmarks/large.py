"""A model of a terabyte: its plan against that of a tenth of it; and two processes that write against one.

The terabyte is sparse files with the headers of a Llama of 550 billion parameters in bfloat16 (126 layers, 18,432
wide), which take no disk. Limits: ``stretch --dry-run`` of it in 5 seconds and 150 MB, and 1.5 times the peak of a
folder of a tenth of the bytes in as many tensors. ``--jobs 2`` is reported relative to one process, for a model of
``--parameters`` in files of 250 MB. Linux only.
Run: ``python -m benchmarks.large``, with ``--folder /dev/shm`` to leave the disk out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoint import make, stretch
from benchmarks.figures import PAIRS, Figures, process_with_peak

LAYERS, FILES = 126, 210
SECONDS, PEAK, GROWTH = 5, 150, 1.5
#: Of what the command asks a file system, only the room that is left: nothing is written.
ROOMY = """
import os, sys
real = os.statvfs
class Roomy:
    f_bavail = f_bfree = f_blocks = 1 << 40
    f_frsize = 4096
os.statvfs = lambda path: Roomy
from elastic_ir.cli import main
main()
"""


def make_sparse(folder: Path, width: int) -> int:
    """A Llama's folder of sparse files, in bfloat16; the bytes that it claims."""
    inner, narrow, tokens = width * 13 // 4, width // 16, 128_256
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (tokens, width)}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        shapes |= {
            f"{path}.self_attn.q_proj.weight": (width, width), f"{path}.self_attn.k_proj.weight": (narrow, width),
            f"{path}.self_attn.v_proj.weight": (narrow, width), f"{path}.self_attn.o_proj.weight": (width, width),
            f"{path}.mlp.gate_proj.weight": (inner, width), f"{path}.mlp.up_proj.weight": (inner, width),
            f"{path}.mlp.down_proj.weight": (width, inner), f"{path}.input_layernorm.weight": (width,),
            f"{path}.post_attention_layernorm.weight": (width,),
        }  # fmt: skip
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (tokens, width)}
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "vocab_size": tokens,
        "intermediate_size": inner, "num_hidden_layers": LAYERS, "num_attention_heads": width // 128,
        "num_key_value_heads": max(1, narrow // 128), "head_dim": 128, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    names, places, total = list(shapes), {}, 0
    for number in range(FILES):
        file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        header, end = {}, 0
        for name in names[number * len(names) // FILES : (number + 1) * len(names) // FILES]:
            size = 2 * shapes[name][0] * (shapes[name][1] if len(shapes[name]) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            places[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            target.truncate(8 + len(text) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def planned(folder: Path, *more: str) -> tuple[float, float]:
    """Seconds and MB of a process that plans a stretch of 32 layers and writes nothing."""
    out = str(folder.with_name("out"))
    command = ["stretch", str(folder), "--to-units", str(LAYERS + 32), "-o", out, "--dry-run", *more]
    return process_with_peak([sys.executable, "-c", ROOMY, *command])


def main() -> int:
    """Print the figures; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=float, default=2e8)
    parser.add_argument("--rounds", type=int, default=PAIRS)
    parser.add_argument("--folder", type=Path, help="where the models are made; a temporary folder otherwise")
    options = parser.parse_args()
    figures, rounds = Figures(), options.rounds
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        large, small = Path(name) / "large", Path(name) / "small"
        size, _ = make_sparse(large, 18_432) / 1e12, make_sparse(small, 5_632)
        what = f"a stretch of {size:.1f} TB in {FILES} files planned"
        runs = [planned(large) for _ in range(rounds)]
        peers = [planned(small) for _ in range(rounds)]
        figures.add(what, [seconds for seconds, _ in runs], limit=SECONDS, unit=" s")
        figures.add(f"{what}: peak of memory", [peak for _, peak in runs], limit=PEAK, unit=" MB")
        peaks = [peak / other for (_, peak), (_, other) in zip(runs, peers, strict=True)]
        figures.add(f"{what}: peak, relative to a tenth of the bytes", peaks, limit=GROWTH)
        source, target = Path(name) / "source", Path(name) / "target"
        make(source, options.parameters)
        shards = ("--shard-size", "250MB")
        figures.ratio(
            f"a folder written by `--jobs 2`, relative to one process ({os.cpu_count()} processors)",
            lambda: stretch(source, target, *shards, "--jobs", "2")[0],
            lambda: stretch(source, target, *shards)[0],
            limit=2,
            rounds=rounds,
        )
    return figures.done()


if __name__ == "__main__":
    sys.exit(main())
