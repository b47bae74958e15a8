"""The loader: batches whose order and augmentation depend on the seed and the step alone.

Training can therefore begin at any step (a rewound ticket) and see what it would have seen. A training is one stream
of steps; where several processes share it, each takes its part of every batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastic_ir.training.data import Data, Split


class BatchStream:
    """The batches of the steps ``start`` to ``stop``, as (images, labels) on a device; an iterable with a length."""

    def __init__(
        self, data: Data, batch_size: int, *, seed: int, start: int = 0, stop: int, augment: bool = False,
        channels_last: bool = False, device: torch.device | str = "cpu", rank: int = 0, world: int = 1,
        workers: int = 0,
    ) -> None:  # fmt: skip
        self.data, self.batch_size, self.seed = data, min(batch_size, len(data.train)), seed
        self.start, self.stop, self.augment = start, stop, augment
        self.rank, self.world, self.workers = rank, world, workers
        self.device = torch.device(device)
        self.channels_last = channels_last

    def __len__(self) -> int:
        return self.stop - self.start

    def indices(self) -> Iterator[Tensor]:
        """For each step the indices of its images: a new permutation every epoch, the rest of a batch left out."""
        per_epoch = len(self.data.train) // self.batch_size
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(len(self.data.train), generator=_generator(self.seed, 1, epoch))
            at = (step % per_epoch) * self.batch_size
            yield order[at : at + self.batch_size][self.rank :: self.world]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.data.train.images is None:
            yield from self._streamed()
            return
        split = on_device(self.data.train, self.device, self.channels_last)
        assert split.images is not None and split.labels is not None
        for step, chosen in enumerate(self.indices(), self.start):
            at = chosen.to(self.device)
            yield self._finished(split.images[at], step), split.labels[at]

    def _streamed(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Large sets, read by torch's loader in the same order; how an image is augmented is the dataset's affair."""
        loader: Any = torch.utils.data.DataLoader(
            self.data.train.dataset, batch_sampler=_Steps(self),
            num_workers=self.workers, pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for images, labels in loader:
            yield self._laid_out(images.to(self.device, non_blocking=True)), labels.to(self.device)

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def _finished(self, images: Tensor, step: int) -> Tensor:
        if self.augment:
            images = augmented(
                images, _generator(self.seed, 2, step * self.world + self.rank), self.data.flips
            )
        return self._laid_out(images)


#: What lies on a device, by the split that it is a copy of: one for all trainings, and gone with its data.
_COPIES: weakref.WeakKeyDictionary[Split, dict[tuple[str, bool, int], Split]] = weakref.WeakKeyDictionary()


def on_device(split: Split, device: torch.device, channels_last: bool) -> Split:
    """A split in memory as a training reads it, copied once however many trainings there are.

    A copy of each training's own would stay until Python looks for cycles, which a trainer and its loader are part of.
    """
    assert split.images is not None and split.labels is not None
    copies = _COPIES.setdefault(split, {})
    # what was written to in the meantime is copied anew
    place = (str(device), channels_last, 0 if split.images.is_inference() else split.images._version)
    if place not in copies:
        copies.clear()
        images = split.images.to(device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        copies[place] = Split(images, split.labels.to(device))
    return copies[place]


class _Steps(torch.utils.data.Sampler[list[int]]):
    """The indices of each step as torch's loader wants them, made as they are asked for.

    Those of a whole training on a large set would fill gigabytes as Python's integers.
    """

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[int]]:
        return (chosen.tolist() for chosen in self.stream.indices())

    def __len__(self) -> int:
        return len(self.stream)


def _generator(seed: int, purpose: int, number: int) -> torch.Generator:
    """A random stream of its own for each seed, purpose and epoch or step.

    They are hashed, since torch's generator looks at the low half of its seed only.
    """
    (hashed,) = np.random.SeedSequence([seed, purpose, number]).generate_state(1)
    return torch.Generator().manual_seed(int(hashed))


def augmented(images: Tensor, generator: torch.Generator, flips: bool) -> Tensor:
    """Each image moved by up to an eighth of its extent, zeros coming in, and mirrored half of the time if allowed."""
    count, _, height, width = images.shape
    pad = max(height // 8, 1)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    moves = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(images.device)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device) if flips else None
    rows = moves[0][:, None] + torch.arange(height, device=images.device)
    columns = moves[1][:, None] + torch.arange(width, device=images.device)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches_of(split: Split, batch_size: int, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in order, the last batch being what is left."""
    if split.images is None or split.labels is None:
        loader: Any = torch.utils.data.DataLoader(split.dataset, batch_size=batch_size)
        for images, labels in loader:
            yield images.to(device), labels.to(device)
        return
    for images, labels in zip(
        torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True
    ):
        yield images.to(device), labels.to(device)
