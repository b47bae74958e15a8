"""The loader: batches whose order and augmentation depend on the seed and the step alone.

Training can therefore begin at any step (a rewound ticket) and see what it would have seen. A training is one stream
of steps; where several processes share it, each takes its part of every batch. A dataset that is read item by item is
read anew each epoch, every item with a seed of its own, so that it does not matter which process reads it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from elastic_ir.training.data import Data, Split
from elastic_ir.training.items import generator_for, read_items, seed_of, taken


class BatchStream:
    """The batches of the steps ``start`` to ``stop``, as (images, labels) on a device; an iterable with a length.

    ``dtype`` is that of the network's weights: floats are given in it, whole numbers as they are.
    """

    def __init__(
        self, data: Data, batch_size: int, *, seed: int, start: int = 0, stop: int, augment: bool = False,
        channels_last: bool = False, device: torch.device | str = "cpu", rank: int = 0, world: int = 1,
        workers: int = 0, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.data, self.batch_size, self.seed = data, min(batch_size, len(data.train)), seed
        self.start, self.stop, self.augment = start, stop, augment
        self.rank, self.world, self.workers = rank, world, workers
        self.device, self.dtype = torch.device(device), dtype
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
                order = torch.randperm(len(self.data.train), generator=generator_for(self.seed, 1, epoch))
            at = (step % per_epoch) * self.batch_size
            yield order[at : at + self.batch_size][self.rank :: self.world]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.data.train.images is None:
            yield from self._streamed()
            return
        split = on_device(self.data.train, self.device, self.channels_last, self.dtype)
        assert split.images is not None and split.labels is not None
        for step, chosen in enumerate(self.indices(), self.start):
            at = chosen.to(self.device)
            yield self._finished(split.images[at], step), split.labels[at]

    def _streamed(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Datasets, read by torch's loader in the same order; what they augment themselves stays as it is."""
        # made as they are asked for: those of a whole training on a large set would fill gigabytes as Python's integers
        steps = enumerate(self.indices(), self.start)
        places = ([(step, index) for index in chosen.tolist()] for step, chosen in steps)
        loader: Any = torch.utils.data.DataLoader(
            _Read(self.data.train.dataset, self.seed), batch_sampler=places,
            num_workers=self.workers, pin_memory=self.device.type == "cuda",
            generator=generator_for(self.seed, 4),
        )  # fmt: skip
        for step, (images, labels) in enumerate(loader, self.start):
            images, labels = (
                taken(part.to(self.device, non_blocking=True), self.dtype) for part in (images, labels)
            )
            yield self._finished(images, step), labels

    def _finished(self, images: Tensor, step: int) -> Tensor:
        if self.augment and not self.data.augmented:
            images = augmented(
                images, generator_for(self.seed, 2, step * self.world + self.rank), self.data.flips
            )
        return _laid_out(images, self.channels_last)


def _laid_out(images: Tensor, channels_last: bool) -> Tensor:
    """Images with their channels last in memory; other inputs as they are."""
    if not channels_last or images.ndim != 4:
        return images
    return images.contiguous(memory_format=torch.channels_last)


#: What lies on a device, by the split that it is a copy of: one for all trainings, and gone with its data.
_COPIES: weakref.WeakKeyDictionary[Split, dict[tuple[Any, ...], Split]] = weakref.WeakKeyDictionary()


def on_device(
    split: Split, device: torch.device, channels_last: bool, dtype: torch.dtype | None = None
) -> Split:
    """A split in memory as a training reads it, copied once however many trainings there are.

    A copy of each training's own would stay until Python looks for cycles, which a trainer and its loader are part of.
    """
    assert split.images is not None and split.labels is not None
    copies = _COPIES.setdefault(split, {})
    # what was written to in the meantime is copied anew
    parts = (split.images, split.labels)
    versions = (0 if part.is_inference() else part._version for part in parts)
    place = (str(device), channels_last, dtype, *versions)
    if place not in copies:
        copies.clear()
        images, labels = (taken(part.to(device), dtype) for part in parts)
        copies[place] = Split(_laid_out(images, channels_last), labels)
    return copies[place]


class _Read(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A dataset's items by step and index, random augmentation decided by these two and a seed, in any process."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, places: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """A batch as torch's loader asks for it."""
        # one step's seeds differ by their items' numbers, spread over 32 bits (Knuth's multiplier)
        begun = {step: seed_of(self.seed, 3, step) for step in {step for step, _ in places}}
        seeds = ((index, (begun[step] + 2654435761 * index) % 2**32) for step, index in places)
        return read_items(self.dataset, seeds)


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


def batches_of(
    split: Split, batch_size: int, device: torch.device | str, dtype: torch.dtype | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in order, the last batch being what is left; what a dataset draws is the same every time."""
    batches: Any
    if split.images is None or split.labels is None:
        places = [(0, index) for index in range(len(split))]
        batches = torch.utils.data.DataLoader(
            _Read(split.dataset, 0), batch_size, sampler=places, generator=generator_for(0)
        )
    else:
        batches = zip(
            torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True
        )
    for images, labels in batches:
        yield taken(images.to(device), dtype), taken(labels.to(device), dtype)
