"""What ties a file of masks to the weights beside it: a digest of their names, shapes and some bytes. No torch here.

Weights and masks are two files, and either may be replaced without the other: by another tool, by a run that was
killed between two renames, by two runs at once. So the masks' metadata says which weights they were written for. Of
each tensor a few places are read, however large it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from elastic_ir.errors import MaskError
from elastic_ir.formats.packed_masks import INDEX
from elastic_ir.formats.registry import SAFETENSORS
from elastic_ir.formats.safetensors import DTYPES, METADATA
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask

#: Metadata of a mask file: the digest of the weights that it was written for.
TIE = "elastic_ir.tensors.weights"

_SPOTS = 8  #: places of a tensor that are looked at, evenly spaced, its ends among them
_SPOT = 64  #: bytes at each; a multiple of every element's size


@dataclass(frozen=True)
class _Sample:
    """What is looked at of a tensor: bytes at their offsets within it."""

    dtype: str
    shape: tuple[int, ...]
    spots: tuple[tuple[int, bytes], ...]


def tie_of(files: Iterable[Path]) -> str:
    """The digest of the tensors in ``.safetensors`` files of sound headers, however they are spread over them."""
    digest = hashlib.sha256()
    for name, sample in sorted(_samples(files), key=lambda pair: pair[0]):
        digest.update(json.dumps([name, sample.dtype, sample.shape]).encode())
        for _, spot in sample.spots:
            digest.update(spot)
    return digest.hexdigest()


def check_tie(
    sidecar: Path, metadata: Mapping[str, str], masks: Mapping[str, Mask], files: Iterable[Path]
) -> None:
    """MaskError where masks were written for other weights than lie in the files now.

    ElasticIR 0.1 left no digest: its masks are taken where the weights are zero wherever they prune, in the places that
    are looked at. Masks without any of its metadata were put there by hand, and are taken as they are.
    """
    files = [file for file in files if SAFETENSORS.names(file)]
    if TIE in metadata:
        fits = metadata[TIE] == tie_of(files)
    elif INDEX in metadata or metadata.get("format") == "pt":
        fits = all(
            name not in masks or _zero_where_pruned(masks[name], sample) for name, sample in _samples(files)
        )
    else:
        fits = True
    if not fits:
        raise MaskError(
            f"{sidecar} holds masks of other weights than lie beside it now; delete it, or, if these masks are meant, "
            f"give them by --mask {sidecar} (in Python masks=)"
        )


def _samples(files: Iterable[Path]) -> Iterator[tuple[str, _Sample]]:
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            for name, item in header.items():
                if name == METADATA:
                    continue
                begin, end = item["data_offsets"]
                size = end - begin
                last = max(size - _SPOT, 0)
                places = sorted({last * i // (_SPOTS - 1) // _SPOT * _SPOT for i in range(_SPOTS)})
                spots = []
                for place in places:
                    file.seek(8 + length + begin + place)
                    spots.append((place, file.read(min(_SPOT, size - place))))
                yield name, _Sample(item["dtype"], tuple(item["shape"]), tuple(spots))


def _zero_where_pruned(mask: Mask, sample: _Sample) -> bool:
    dtype = next((ours for ours, theirs in DTYPES.items() if theirs == sample.dtype), "")
    if dtype not in ITEM_SIZES or mask.shape != sample.shape:
        return True  # that it does not fit is told by who attaches it
    item, bits = ITEM_SIZES[dtype], mask.bits
    for offset, spot in sample.spots:
        for at in range(0, len(spot), item):
            index = (offset + at) // item
            if any(spot[at : at + item]) and not bits[index >> 3] >> (7 - index % 8) & 1:
                return False
    return True
