"""Healing a small language model after it became deeper: what is trained, at which rate, from which copies.

``python studies/healing.py`` takes ten minutes on one core, needs transformers, and writes ``results/healing.md``.
A byte-level Llama of four layers learns the docstrings of Python's standard library; two of its layers are copied; and
the deeper model is trained a little more. docs/healing.md states what was measured.
"""

from __future__ import annotations

import inspect
import itertools
import pkgutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import elastic_ir as eir

LENGTH, BATCH = 64, 32  #: bytes in a window, windows in a step
STEPS, HEALING = 400, 80  #: of the source, and after the change
PLAN = [0, 1, 1, 2, 3, 3]  #: two layers occur twice; the second occurrences are the copies
COPIES = [2, 5]
RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)
#: Modules that act when they are imported.
ACTING = {"antigravity", "this", "idlelib", "test", "turtledemo", "lib2to3"}


def docstrings() -> bytes:
    """The docstrings of the standard library's public modules, their classes and functions."""
    found = []
    for name in sorted(sys.stdlib_module_names - ACTING):
        if name.startswith("_") or not any(name == module.name for module in pkgutil.iter_modules()):
            continue
        try:
            module = import_module(name)
        except Exception:  # of another system
            continue
        members = (value for _, value in inspect.getmembers(module) if callable(value))
        found += [text for value in (module, *members) if (text := inspect.getdoc(value))]
    return "\n\n".join(dict.fromkeys(found)).encode("utf-8", "ignore")


def windows(data: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """So many batches [32, 64] of random windows."""
    chance = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(data) - LENGTH, (BATCH, 1), generator=chance)
        yield data[at + torch.arange(LENGTH)]


@torch.no_grad()
def loss(model: LlamaForCausalLM, data: torch.Tensor) -> float:
    """Mean cross-entropy in nats a byte, over 640 windows."""
    model.eval()
    return statistics.fmean(float(model(x, labels=x).loss) for x in windows(data, 20, seed=99))


def train(
    model: LlamaForCausalLM, data: torch.Tensor, steps: int, rate: float, seed: int, only: list[int] | None
) -> None:
    """AdamW with a linear decay; ``only`` are the layers that are trained, None for the whole model."""
    model.train()
    if only is not None:
        model.requires_grad_(False)
        for layer in only:
            model.model.layers[layer].requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for x in windows(data, steps, seed):
        optimizer.zero_grad()
        model(x, labels=x).loss.backward()
        optimizer.step()
        schedule.step()
    model.requires_grad_(True)


def main() -> None:
    begun = time.monotonic()
    torch.set_num_threads(1)
    data = torch.tensor(list(docstrings()))
    split = len(data) * 9 // 10
    learned, held = data[:split], data[split:]
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=172, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    results: dict[tuple[str, str, float], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            torch.manual_seed(seed)
            source = LlamaForCausalLM(config)
            train(source, learned, STEPS, 3e-3, seed, None)
            source.save_pretrained(Path(folder, f"{seed}"))
            graph = eir.load(str(Path(folder, f"{seed}")), headers_only=True)
            eir.save(eir.stretch(graph, plan=[PLAN], zero="auto"), Path(folder, f"{seed}-identity"))
            eir.save(eir.stretch(graph, plan=[PLAN]), Path(folder, f"{seed}-plain"))
            for kind in ("", "-plain", "-identity"):
                name = kind.removeprefix("-") or "source"
                model = LlamaForCausalLM.from_pretrained(Path(folder, f"{seed}{kind}"))
                results.setdefault((name, "nothing", 0.0), []).append(loss(model, held))
                for parts, rate in itertools.product(("all", "copies"), RATES):
                    if not kind and parts == "copies":
                        continue
                    model = LlamaForCausalLM.from_pretrained(Path(folder, f"{seed}{kind}"))
                    train(model, learned, HEALING, rate, seed + 100, COPIES if parts == "copies" else None)
                    results.setdefault((name, parts, rate), []).append(loss(model, held))
                    print(seed, name, parts, rate, results[name, parts, rate][-1], flush=True)
    write(results, len(data), time.monotonic() - begun)


def write(results: dict[tuple[str, str, float], list[float]], size: int, seconds: float) -> None:
    """The table, with mean and range over the seeds."""
    lines = [
        "# Healing a small language model", "",
        f"By `studies/healing.py`, torch {torch.__version__}, one thread, {seconds / 60:.0f} minutes. Text: {size:,}",
        f"bytes of docstrings, a tenth held out. The source is trained for {STEPS} steps, each row for {HEALING} more.",
        f"Loss on held-out text in nats a byte: mean and range over {len(SEEDS)} seeds.", "",
        "| network | trained | learning rate | loss | range |", "|---|---|--:|--:|--:|",
    ]  # fmt: skip
    for (name, parts, rate), values in results.items():
        span = f"{min(values):.3f} to {max(values):.3f}"
        lines.append(f"| {name} | {parts} | {rate or '-'} | {statistics.fmean(values):.3f} | {span} |")
    Path(__file__).with_name("results").joinpath("healing.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
