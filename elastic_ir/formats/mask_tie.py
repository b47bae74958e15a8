"""What ties a file of masks to the weights beside it: a digest of their names, shapes and some bytes. No torch here.

Weights and masks are two files, and either may be replaced without the other: by another tool, by a run that was
killed between two renames, by two runs at once. So the masks' metadata states which weights they were written for. Of
each tensor a few places are read, however large it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from elastic_ir.errors import MaskError
from elastic_ir.formats import SAFETENSORS
from elastic_ir.formats.packed_masks import INDEX
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.formats.safetensors import NAMES, read_safetensors
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask, nbytes

#: Metadata of a mask file: the digest of the weights that it was written for.
TIE = "elastic_ir.tensors.weights"

_SPOTS = 8  #: places of a tensor that are looked at, evenly spaced, its ends among them
_SPOT = 64  #: bytes at each; a multiple of every element's size


#: What is looked at of a tensor: itself, and bytes at their offsets within it.
Sample = tuple[FileTensor, list[tuple[int, bytes]]]


def tie_of(files: Iterable[Path]) -> str:
    """The digest of the tensors in ``.safetensors`` files of sound headers, however they are spread over them."""
    digest = hashlib.sha256()
    for name, (tensor, spots) in sorted(_samples(files), key=lambda pair: pair[0]):
        digest.update(json.dumps([name, NAMES[tensor.dtype], tensor.shape]).encode())
        for _, spot in spots:
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


def _samples(files: Iterable[Path]) -> Iterator[tuple[str, Sample]]:
    for path in files:
        tensors, _ = read_safetensors(path)
        with path.open("rb") as file:
            for name, tensor in tensors.items():
                size = nbytes(tensor)
                last = max(size - _SPOT, 0)
                spots = []
                for place in sorted({last * i // (_SPOTS - 1) // _SPOT * _SPOT for i in range(_SPOTS)}):
                    file.seek(tensor.offset + place)
                    spots.append((place, file.read(min(_SPOT, size - place))))
                yield name, (tensor, spots)


def _zero_where_pruned(mask: Mask, sample: Sample) -> bool:
    tensor, spots = sample
    if tensor.dtype not in ITEM_SIZES or mask.shape != tensor.shape:
        return True  # whoever attaches it reports that it does not fit
    item, bits = ITEM_SIZES[tensor.dtype], mask.bits
    for offset, spot in spots:
        for at in range(0, len(spot), item):
            index = (offset + at) // item
            if any(spot[at : at + item]) and not bits[index >> 3] >> (7 - index % 8) & 1:
                return False
    return True
