"""A random Llama stretched from 22 to 32 layers as a folder of shards, against copying what comes out with ``cp``.

Limits for half a billion parameters and more (below that, start-up dominates), with ``--no-check``, since the check is
a process that builds the network: 1.3 times ``cp -r`` of the result (neither synced), and with ``--durable`` 1.3 times
``cp -r`` and ``sync``. Limits for all sizes: a peak of 120 MB resident, the same within 20 % for a model of a tenth of
the size, and one second for that model if it has under 50 MB. Each run is a separate process, start and imports
included, begins with nothing left to write back, and replaces what the run before it of the same kind has written:
pages that a virtual machine has just given back cost both the same. If ``mergekit-yaml`` is installed, it makes the
same model, ``elastic-ir verify`` compares the two, and mergekit must take at least five times the time (for half a
billion parameters and more) and twenty times the memory. Linux only.
Run: ``python -m benchmarks.checkpoint`` (100 million parameters), ``--parameters 1.1e9`` for the size of TinyLlama.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import PAIRS, Figures, process_with_peak

LIMIT = 1.3
SMALL = 100  #: where start-up dominates
PEAK = 120  # MB
LARGE = 5e8  # parameters
LAYERS, TARGET = 22, 32
PLAN = "0-15,6-21"
SHARD = 1_000_000_000


def make(folder: Path, parameters: float) -> None:
    """A Llama of about so many parameters in bfloat16, of random bytes, written shard by shard without torch."""
    # TinyLlama's proportions: 2048 wide, 5632 in the MLP, 4 of 32 heads for keys and values, 32000 tokens
    width = max(64, round(2048 * (parameters / 1.1e9) ** 0.5 / 64) * 64)
    inner, narrow, tokens = width * 11 // 4, width // 8, 32000 * width // 2048
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
        "intermediate_size": inner, "num_hidden_layers": LAYERS, "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, narrow // 64), "head_dim": 64, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if shards[-1] and held + size > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    places = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, end = {}, 0
        for name in names:
            size = 2 * shapes[name][0] * (shapes[name][1] if len(shapes[name]) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            places[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            for at in range(0, end, 1 << 20):
                target.write(os.urandom(min(1 << 20, end - at)))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds from start to finish of a process, and its peak of resident memory in MB."""
    if command[0] != "sync":
        os.sync()
    return process_with_peak(command)


def stretch(source: Path, target: Path, *options: str) -> tuple[float, float]:
    """One stretch by the command line, without the check, into a folder that is not there yet."""
    shutil.rmtree(target, ignore_errors=True)
    arguments = ["stretch", str(source), "--plan", PLAN, "-o", str(target), "--no-check", *options]
    return run([sys.executable, "-m", "elastic_ir.cli", *arguments])


def copy(source: Path, target: Path, durable: bool = False) -> float:
    """``cp -r`` of a folder, into one that is not there yet; ``durable`` has it on the disk."""
    shutil.rmtree(target, ignore_errors=True)
    seconds = run(["cp", "-r", str(source), str(target)])[0]
    return seconds + (run(["sync", *map(str, target.iterdir())])[0] if durable else 0.0)


def mergekit(source: Path, target: Path) -> tuple[float, float]:
    """The same layers by mergekit's passthrough."""
    shutil.rmtree(target, ignore_errors=True)
    slices = [{"sources": [{"model": str(source), "layer_range": part}]} for part in ([0, 16], [6, 22])]
    recipe = target.with_suffix(".yaml")
    recipe.write_text(json.dumps({"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}))
    return run(["mergekit-yaml", str(recipe), str(target), "--no-copy-tokenizer"])


def main() -> int:
    """Print the figures; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=float, default=1e8)
    parser.add_argument("--rounds", type=int, default=PAIRS)
    parser.add_argument("--folder", type=Path, help="where the models are made; a temporary folder otherwise")
    options = parser.parse_args()
    figures, rounds = Figures(), options.rounds
    large = options.parameters >= LARGE
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, target, twin, small = (Path(name) / part for part in ("source", "target", "copy", "small"))
        make(small, options.parameters / 10)
        begun = [stretch(small, target) for _ in range(rounds + 1)][1:]
        if sum(file.stat().st_size for file in target.iterdir()) < 50e6:
            figures.add(
                "a checkpoint folder of under 50 MB stretched", [t for t, _ in begun], limit=1, unit=" s"
            )
        make(source, options.parameters)
        stretch(source, target)
        size = sum(file.stat().st_size for file in target.iterdir()) / 1e9
        what = f"a checkpoint folder streamed from {LAYERS} to {TARGET} layers ({size:.1f} GB out"
        runs: list[tuple[float, float]] = []

        def ours(*flags: str) -> float:
            runs.append(stretch(source, target, *flags))
            return runs[-1][0]

        for flags, peer in (
            ((), "`cp -r`"),
            (("--durable",), "`cp -r` and `sync`"),
        ):
            figures.ratio(
                f"{', '.join((what, *flags))}), relative to {peer} of the result",
                lambda flags=flags: ours(*flags),  # type: ignore[misc]
                lambda flags=flags: copy(target, twin, "--durable" in flags),  # type: ignore[misc]
                limit=LIMIT if large else SMALL,
                rounds=rounds,
            )
        peaks = [peak for _, peak in runs]
        figures.add(f"{what}): peak of memory", peaks, limit=PEAK, unit=" MB")
        smaller = statistics.median(peak for _, peak in begun)
        figures.add(
            f"{what}): peak, relative to a tenth of the model", [p / smaller for p in peaks], limit=1.2
        )
        inspected = [
            run([sys.executable, "-m", "elastic_ir.cli", "inspect", str(source)])[0] for _ in range(rounds)
        ]
        figures.add(f"the source of {what}) inspected", inspected, limit=1, unit=" s")
        shutil.rmtree(twin, ignore_errors=True)
        if shutil.which("mergekit-yaml") is None:
            print("mergekit: not installed")
        else:
            against_mergekit(figures, source, target, twin, rounds, large)
    return figures.done()


def against_mergekit(
    figures: Figures, source: Path, target: Path, twin: Path, rounds: int, large: bool
) -> None:
    """mergekit's time and memory, relative to ours for the same layers without the check; the two are compared."""
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []

    def one() -> float:
        ours.append(stretch(source, target))
        return ours[-1][0]

    def other() -> float:
        theirs.append(mergekit(source, twin))
        return theirs[-1][0]

    figures.ratio(
        "the same layers by mergekit, relative to ours",
        other, one, limit=5 if large else 0, at_least=True, rounds=rounds,
    )  # fmt: skip
    shares = [peer[1] / own[1] for peer, own in zip(theirs, ours, strict=True)]
    figures.add("memory of mergekit, relative to ours", shares, limit=20, at_least=True)
    run([sys.executable, "-m", "elastic_ir.cli", "verify", str(twin), "--against", str(target)])


if __name__ == "__main__":
    sys.exit(main())
