"""The cost of masks in training: a step of a sparse ResNet-20 with enforcement, over the same step without.

The variants take turns within each round and only ratios within a round count, so that a busy machine slows both alike.
Run as ``python -m benchmarks.training_step``; exits with 1 if the enforcement costs more than the limit.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.figures import Figures
from elastic_ir.tickets import apply_masks, enforce, magnitude_masks
from elastic_ir.zoo import cifar_resnet

LIMIT = 1.03


def main() -> int:
    """Measure, print the table, and report by the exit code whether it is within the limit."""
    options = _options()
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    batch = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    variants = _variants(options.sparsity, batch)
    times: dict[str, list[float]] = {name: [] for name in variants}
    dice = random.Random(0)
    for turn in range(options.warmup + options.steps):
        for name in dice.sample(list(variants), len(variants)):  # what ran before leaves its mark on caches
            start = time.perf_counter()
            variants[name]()
            if turn >= options.warmup:
                times[name].append(time.perf_counter() - start)
    ratios = {name: _ratios(own, times["no masks"]) for name, own in times.items()}
    print(f"ResNet-20, batch {options.batch}, {options.sparsity:.0%} sparse, SGD with momentum, "
          f"{options.steps} rounds, {torch.get_num_threads()} threads")  # fmt: skip
    print(f"{'variant':<28}{'ms a step':>10}{'ratio':>8}")
    for name, own in times.items():
        print(f"{name:<28}{1000 * median(own):>10.1f}{median(ratios[name]):>8.3f}")
    figures = Figures()
    figures.add(
        f"a training step of an {options.sparsity:.0%} sparse ResNet-20, with enforced masks relative to without "
        f"(batch {options.batch})",
        ratios["enforce"],
        limit=LIMIT,
    )
    return figures.done("torch")


def _variants(share: float, batch: tuple[Tensor, Tensor]) -> dict[str, Callable[[], None]]:
    """One training step for each way to treat the masks, each on its own copy of one ticket."""
    ticket = cifar_resnet(20).train()
    masks = magnitude_masks(ticket, share)
    apply_masks(ticket, masks)
    steps = {}
    for name in ("no masks", "enforce", "enforce, dense gradients", "torch.nn.utils.prune"):
        model = copy.deepcopy(ticket)
        if name == "torch.nn.utils.prune":
            for weight, mask in masks.items():
                path, _, role = weight.rpartition(".")
                layer = model.get_submodule(path)
                prune.custom_from_mask(layer, role, mask)  # type: ignore[no-untyped-call]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        if name.startswith("enforce"):
            enforce(model, optimizer, masks, mask_gradients=name == "enforce")
        steps[name] = _step(model, optimizer, *batch)
    return steps


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ratios(own: list[float], base: list[float]) -> list[float]:
    """The ratio of each of five parts of the rounds, by their medians: single steps scatter far more than 3 %."""
    parts = [slice(part, None, 5) for part in range(5)]
    return [median(a / b for a, b in zip(own[part], base[part], strict=True)) for part in parts]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=40, help="rounds that count (default 40)")
    parser.add_argument("--warmup", type=int, default=4, help="rounds before them (default 4)")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch (default 128)")
    parser.add_argument("--sparsity", type=float, default=0.8, help="share of pruned weights (default 0.8)")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of torch (default: torch's own choice)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
