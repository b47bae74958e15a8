"""Packed mask files beside a folder's weights: one bit for each weight, one mask in memory at a time. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from elastic_ir.formats.packed_masks import INDEX, SUFFIX, VERSION, packed_size
from elastic_ir.tensors.lazy import Mask, TensorData


@dataclass(frozen=True)
class MaskBits:
    """A mask's bits as a tensor of bytes, read when they are written."""

    mask: Mask
    dtype: str = "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        return (packed_size(self.mask.size),)

    def chunks(self) -> Iterator[memoryview]:
        yield memoryview(self.mask.bits)


def packed_masks(masks: Mapping[str, Mask]) -> tuple[dict[str, TensorData], dict[str, str]]:
    """The tensors and the metadata of a mask file, for the writer of ``.safetensors``."""
    index = {name: {"shape": list(mask.shape), "mask": mask.dtype} for name, mask in masks.items()}
    metadata = {
        "format": "pt",
        INDEX: json.dumps({"version": VERSION, "masks": index}, separators=(",", ":")),
    }
    return {name + SUFFIX: MaskBits(mask) for name, mask in masks.items()}, metadata
