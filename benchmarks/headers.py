"""``elastic-ir diff --headers`` of two checkpoint folders of 3 GB each: CPU time, start and imports included.

Next to nothing is read, so that on an idle machine the clock shows hardly more.

The folders are a Llama of 30 layers in the proportions of TinyLlama, and one of 32 with the record that a stretch
leaves. Their files are sparse, of the right sizes and without a byte of weights on the disk, in a folder in memory
where there is one. Run: ``python -m benchmarks.headers``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figures, process
from elastic_ir.checkpoints.record import Origin, Step, record_text

SECONDS = 1.0
ROUNDS = 5
MEMORY = Path("/dev/shm")
WIDTH, INNER, NARROW, TOKENS = 2048, 5632, 256, 32000
SOURCE, TARGET = 30, 32  # layers; both folders have about 3 GB


def shapes_of(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama in TinyLlama's proportions."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    for layer in range(layers):
        path = f"model.layers.{layer}"
        shapes |= {
            f"{path}.self_attn.q_proj.weight": (WIDTH, WIDTH), f"{path}.self_attn.k_proj.weight": (NARROW, WIDTH),
            f"{path}.self_attn.v_proj.weight": (NARROW, WIDTH), f"{path}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{path}.mlp.gate_proj.weight": (INNER, WIDTH), f"{path}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{path}.mlp.down_proj.weight": (WIDTH, INNER), f"{path}.input_layernorm.weight": (WIDTH,),
            f"{path}.post_attention_layernorm.weight": (WIDTH,),
        }  # fmt: skip
    return {**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (TOKENS, WIDTH)}


def make(folder: Path, layers: int) -> int:
    """A folder in bfloat16 as one sparse file; its size in bytes."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "vocab_size": TOKENS,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": WIDTH // 64,
        "num_key_value_heads": NARROW // 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes_of(layers).items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return 8 + len(text) + end


def cpu_time(command: Sequence[str]) -> float:
    """Seconds of processor that a command takes, which has to succeed."""
    before = os.times()
    process(command)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    """Measure, and print the figure; 1 where the limit is passed."""
    figures = Figures()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        source, target = Path(name) / "llama", Path(name) / f"llama-{TARGET}"
        sizes = [make(source, SOURCE), make(target, TARGET)]
        ends = {
            end.removeprefix("model.layers.0") for end in shapes_of(1) if end.startswith("model.layers.0")
        }
        moved = range(SOURCE, TARGET)
        lineage = {
            f"model.layers.{at}{end}": Origin(f"model.layers.{at - TARGET + SOURCE}{end}")
            for at in moved
            for end in ends
        }
        plan = f"0-{SOURCE - 1},{2 * SOURCE - TARGET}-{SOURCE - 1}"
        step = Step("0", (source.name,), {"model.layers": plan}, lineage, ())
        (target / "elastic_ir.json").write_text(record_text([step]))
        command = [
            sys.executable,
            "-m",
            "elastic_ir.cli",
            "diff",
            "--headers",
            os.fspath(source),
            os.fspath(target),
        ]
        cpu_time(command)
        seconds = [cpu_time(command) for _ in range(ROUNDS)]
    print(f"folders of {sizes[0] / 1e9:.1f} and {sizes[1] / 1e9:.1f} GB")
    figures.add(
        "`elastic-ir diff --headers` of two 3 GB checkpoint folders, CPU time",
        seconds,
        limit=SECONDS,
        unit=" s",
    )
    return figures.done()


if __name__ == "__main__":
    sys.exit(main())
