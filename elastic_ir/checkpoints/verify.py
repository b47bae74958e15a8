"""Whether a checkpoint folder holds what its record states: every tensor is compared with its origin, streamed.

The last step of the record names each tensor's origin in the sources, and the layers' plan; what it does not name is
to be the first source's tensor of that name, byte for byte. Two files are read piece by piece, so memory does not
depend on the size of the model. Only what a recipe multiplied is computed again, by that recipe. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from elastic_ir.checkpoints.config.depth import Stack
from elastic_ir.checkpoints.oracle.verification import network_check
from elastic_ir.checkpoints.read import inside, load_checkpoint, masks_beside
from elastic_ir.checkpoints.record import Origin, Step, read_record
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.model_folder import CONFIG, RECORD, CheckpointSource, is_checkpoint, layout_of
from elastic_ir.formats.packed_masks import read_mask_tensors
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import DIGITS
from elastic_ir.plans.plan import parse_indices
from elastic_ir.safety.limits import allowing_blocks
from elastic_ir.tensors.arrays import FLOATS, array_dtype
from elastic_ir.tensors.gathered import Gathered
from elastic_ir.tensors.lazy import Mask, MaskedData, TensorData, nbytes
from elastic_ir.tensors.recipes import Scaled

_LAYERS = 100_000  #: more than any network has
_PIECE = 1 << 18  #: bytes that are compared at once; more would leave the processor's cache


@dataclass(frozen=True)
class Difference:
    """A tensor that is not as it should be."""

    tensor: str
    origin: str  #: ``SOURCE:NAME``, or nothing where none is known
    what: str


@dataclass(eq=False)
class Verified:
    """What was found in a folder."""

    folder: Path
    #: the folders that it was compared with; none where the origins were not at hand
    sources: tuple[Path, ...]
    wanted: tuple[str, ...]  #: the names of the sources in the record; none where there is no record
    tensors: int = 0
    nbytes: int = 0
    compared: int = 0  #: tensors whose bytes were compared, with their origin or with another copy of it
    differences: list[Difference] = field(default_factory=list)
    #: where asked for, the SHA-256 of each tensor's bytes, and of the bytes that it should have
    hashes: dict[str, tuple[str, str]] = field(default_factory=dict)
    config: str = CONFIG  #: what the configuration is called
    network: str = ""  #: what was compared with the network of its configuration, or why nothing was

    @property
    def how(self) -> str:
        """``record``, ``names`` where there is none, or ``copies`` where the origins were not at hand."""
        return "names" if not self.wanted else "record" if self.sources else "copies"


@dataclass(eq=False)
class _Folder:
    """A folder's tensors and masks, and where its layers lie."""

    name: str
    tensors: dict[str, TensorData]
    masks: Mapping[str, Mask] | None  #: None where there is no file of masks
    #: by the stack's label and the layer's number: end of name, name
    layers: dict[str, dict[int, dict[str, str]]]
    outside: set[str]  #: what lies in no layer
    #: by the stack's label: layers behind those that are counted, which stay there
    tails: dict[str, list[int]]

    @staticmethod
    def of(path: Path, graph: Graph, labels: Sequence[str]) -> _Folder:
        sidecar = masks_beside(path)
        tensors = {name: weight.storage.data for name, weight in graph.weights.items()}
        layers = {label: _layers(graph, label) for label in labels}
        held = {n for stack in layers.values() for layer in stack.values() for n in layer.values()}
        masks = read_mask_tensors(sidecar) if sidecar is not None else None
        tails = {
            stack.label: [stack.before + extra for extra in range(stack.tail)]
            for stack in Stack.all_of(graph)
        }
        return _Folder(path.resolve().name, tensors, masks, layers, tensors.keys() - held, tails)


def verify_checkpoint(
    folder: Path,
    against: Sequence[Path] = (),
    *,
    hashes: bool = False,
    check: bool = True,
    tell: Callable[[int, int], None] | None = None,
) -> Verified:
    """Compare every tensor of a checkpoint folder with its origin, and return what differs.

    Meanwhile ``check`` compares names, shapes and kinds of layers with the network that its library builds from its
    configuration, where it can, in a process of its own.

    ``against`` are the sources, in the record's order; without them folders of their names beside this one are taken,
    and where there are none, copies of one origin are compared with each other. A folder without a record is compared
    by names. ``hashes`` has the SHA-256 of each tensor's bytes kept; ``tell`` is called with bytes done and in all.
    Raises SourceError for a folder that cannot be read whole (:func:`load_checkpoint`), for another number of sources
    than the record has, and where there is neither a record nor a source.
    """
    graph = load_checkpoint(folder)
    if (folder / RECORD).exists() and isinstance(graph.origin, CheckpointSource):
        inside(folder / RECORD, graph.origin.root)
    steps = read_record(folder)
    step = steps[-1] if steps else None
    paths = _sources(folder, step, [Path(path) for path in against])
    labels = list(step.plan) if step is not None else []
    target = _Folder.of(folder, graph, labels)
    sources = [load_checkpoint(path) for path in paths]
    origins = [_Folder.of(path, source, labels) for path, source in zip(paths, sources, strict=True)]
    found = Verified(folder, paths, step.sources if step is not None else (), len(target.tensors))
    found.config = layout_of(folder).config
    found.nbytes = sum(map(nbytes, target.tensors.values()))
    found.differences += _misplaced(target, origins, step)
    if target.masks is not None:
        found.differences += [
            Difference(name, "", "is a mask of no tensor")
            for name in target.masks
            if name not in target.tensors
        ]
    begun = network_check(graph, sources[0] if sources else None, _layers_of_plan(step, target.name))
    with begun if check else nullcontext() as outcome:
        _compare(found, target, origins, step or Step("", ("",), {}), hashes, tell)
        if outcome is not None:
            found.network, new = outcome()
            found.differences += [Difference(found.config, "", text) for text in new]
    return found


def _layers_of_plan(step: Step | None, folder: str) -> dict[str, list[tuple[bool, int]]]:
    """For each stack of a record's plan whether each layer is of another source than the first, and its number."""
    found: dict[str, list[tuple[bool, int]]] = {}
    for label, text in step.plan.items() if step is not None else ():
        for part in text.split(","):
            other = "/" in part
            found.setdefault(label, []).extend((other, number) for number in _planned(part, folder))
    return found


def _sources(folder: Path, step: Step | None, against: list[Path]) -> tuple[Path, ...]:
    """The folders to compare with."""
    for path in against:
        if not is_checkpoint(path):
            raise SourceError(f"{path} is not a folder of a checkpoint's weights")
        if path.resolve() == folder.resolve():
            raise SourceError(f"{path} is the folder itself; give the source that it was made from")
    if step is None:
        if len(against) != 1:
            raise SourceError(
                f"{folder} has no {RECORD}, which states where its tensors come from; give one source to compare with "
                "by names (--against SOURCE)"
            )
        return tuple(against)
    if against and len(against) != len(step.sources):
        raise SourceError(
            f"{folder} was made from {', '.join(step.sources)} (sources: {len(step.sources)}), and --against gives "
            f"{len(against)}; give each once, in that order"
        )
    twice = next((name for name in step.sources if step.sources.count(name) > 1), None)
    if not against and twice is not None:
        raise SourceError(
            f"{folder} was made from two folders that are called {twice!r}; state which is which, by --against SOURCE "
            f"for each of {', '.join(step.sources)}"
        )
    beside = [folder.resolve().parent / name for name in step.sources]
    if not against and all(is_checkpoint(path) and path != folder.resolve() for path in beside):
        return tuple(beside)
    return tuple(against)


# -- names ---------------------------------------------------------------------------------------------------------


def _layers(graph: Graph, label: str) -> dict[int, dict[str, str]]:
    """The tensors of a stack's layers by number, counted from 0; the label is a path, as in the record."""
    head = "" if label == "network" else re.escape(label) + "[._]?"
    pattern = re.compile(rf"{head}({DIGITS})(?:\.(.+))?")
    found: dict[int, dict[str, str]] = {}
    for name in graph.weights:
        match = pattern.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), {})[match[2] or ""] = name
    bases = [stack.base for stack in Stack.all_of(graph) if stack.label == label]
    base = bases[0] if bases else min(found, default=0)
    return {number - base: layer for number, layer in found.items()}


def _planned(text: str, folder: str) -> list[int]:
    """The source layers of a plan in order, of whichever source."""
    try:
        with allowing_blocks(_LAYERS):
            return parse_indices(",".join(part.rpartition("/")[2] for part in text.split(",")))
    except PlanError as error:
        raise SourceError(f"{RECORD} of {folder} is damaged: {text!r} is not a plan ({error})") from error


def _misplaced(target: _Folder, origins: Sequence[_Folder], step: Step | None) -> Iterator[Difference]:
    """Tensors that are missing, or more, or of another layer than the plan states."""
    if origins:
        first = origins[0]
        wanted = first.outside if step is not None else set(first.tensors)
        for name in sorted(wanted - target.tensors.keys()):
            yield Difference(name, f"{first.name}:{name}", "is missing")
    if step is not None:
        orders = {label: _planned(text, target.name) for label, text in step.plan.items()}
        for label, order in orders.items():
            yield from _off_plan(label, order, target, origins, step)
        yield from _not_by_layer(orders, target, origins, step)


def _not_by_layer(
    orders: Mapping[str, list[int]], target: _Folder, origins: Sequence[_Folder], step: Step
) -> Iterator[Difference]:
    """Tensors with an entry for each layer whose entries are of other layers than the plan states."""
    for name, origin in step.lineage.items():
        how = origin.gathering
        before = [len((origins[0] if origins else target).layers[label]) for label in orders]
        if how is not None and not any(map(how.follows, orders.values(), before)):
            yield Difference(name, "", "has entries of other layers than the plan states")


def _off_plan(
    label: str, numbers: list[int], target: _Folder, origins: Sequence[_Folder], step: Step
) -> Iterator[Difference]:
    """The same for the layers of one stack."""
    stack = target.layers[label]
    if numbers and not stack:
        raise SourceError(
            f"{RECORD} of {target.name} is damaged: there are no layers at {label!r}, which its plan states"
        )
    # the first source's last layers that nothing counts; without it they are only known to be there
    numbers = numbers + (origins[0] if origins else target).tails.get(label, [])
    for number in sorted(stack.keys() - set(range(len(numbers)))):
        for name in stack[number].values():
            yield Difference(
                name, "", f"lies outside of the plan, which has {len(numbers)} layers at {label}"
            )
    copies: dict[tuple[int, int], dict[str, str]] = {}
    for at, number in enumerate(numbers):
        layer = stack.get(at, {})
        source = next((step.origin(name).source for name in layer.values()), 0)
        holder = origins[source] if origins else target
        if origins:
            like = holder.layers[label].get(number, {})
        else:  # the first copy stands for the origin
            like = copies.setdefault((source, number), layer)
        for rest in sorted(like.keys() - layer.keys()):
            yield Difference(f"{label}.{at}.{rest}".rstrip("."), f"{holder.name}:{like[rest]}", "is missing")
        for rest, name in layer.items() if origins else ():
            recorded = step.origin(name).name
            if like and recorded != like.get(rest):
                what = f"is of {recorded!r} by the record's lineage, of layer {number} by its plan"
                yield Difference(name, f"{holder.name}:{recorded}", what)


# -- bytes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Expected:
    """What a tensor should be."""

    data: TensorData | None  #: None where it is known to be another, before a byte is read
    where: str
    what: str = ""  #: what is wrong with it then


def _compare(
    found: Verified,
    target: _Folder,
    origins: Sequence[_Folder],
    step: Step,
    hashes: bool,
    tell: Callable[[int, int], None] | None,
) -> None:
    copies: dict[tuple[Origin, bytes], str] = {}  #: by the origin and a digest of the mask
    done = 0
    for name, data in target.tensors.items():
        origin, mask = step.origin(name), (target.masks or {}).get(name)
        zeros = origin.scale == 0
        if mask is not None and mask.shape != data.shape:
            expected = _Expected(None, "", f"has a mask of shape {list(mask.shape)}")
        elif origins:
            expected = _of_source(origins[origin.source], origin, data, target, name)
        else:
            other = copies.setdefault((origin, sha256(mask.bits).digest() if mask is not None else b""), name)
            expected = _held_against(target.tensors[other], data, mask, f"{target.name}:{other}")
            if other == name and mask is None and not zeros:
                expected = _Expected(data if hashes else None, "")
        what = expected.what
        if expected.data is not None:
            found.compared += zeros or expected.data is not data
            first, own, theirs = _streamed(data, expected.data, zeros, hashes)
            if hashes:
                found.hashes[name] = own, theirs
            if first is not None:
                what = f"{'is not zero at' if zeros else 'differs, first at'} byte {first} of {nbytes(data)}"
        if what:
            found.differences.append(Difference(name, expected.where, what))
        done += nbytes(data)
        if tell is not None:
            tell(done, found.nbytes)


def _of_source(source: _Folder, origin: Origin, data: TensorData, target: _Folder, name: str) -> _Expected:
    """What a tensor should be by the record, from the source's."""
    where = f"{source.name}:{origin.name}"
    theirs = source.tensors.get(origin.name)
    if theirs is None:
        return _Expected(None, where, f"is of {origin.name!r}, which {source.name} does not hold")
    gathering = origin.gathering
    if gathering is not None:
        if not gathering.fits(theirs.shape):
            return _Expected(None, where, f"has entries that its origin {list(theirs.shape)} does not")
        theirs = Gathered(theirs, gathering)
    mask = (target.masks or {}).get(name)
    if source.masks is not None:
        other = source.masks.get(origin.name)
        if other is not None and gathering is not None:
            other = gathering.mask(other)
        if (other is None) != (mask is None):
            what = "has a mask, and its origin none" if other is None else "has no mask, and its origin one"
            return _Expected(None, where, what)
        if other is not None and mask is not None and other.bits != mask.bits:
            return _Expected(None, where, "has another mask than its origin")
    if origin.scale is not None and origin.scale != 0:
        theirs = Scaled(theirs, origin.scale)
    return _held_against(theirs, data, mask, where)


def _held_against(theirs: TensorData, data: TensorData, mask: Mask | None, where: str) -> _Expected:
    if (theirs.shape, theirs.dtype) != (data.shape, data.dtype):
        return _Expected(None, where, _described(data, theirs))
    return _Expected(theirs if mask is None else MaskedData(theirs, mask), where)


def _described(data: TensorData, other: TensorData) -> str:
    return f"is {data.dtype} {list(data.shape)}, its origin {other.dtype} {list(other.shape)}"


def _streamed(
    data: TensorData, expected: TensorData, zeros: bool, hashes: bool
) -> tuple[int | None, str, str]:
    """The first byte that differs, if any, and the hashes of both; ``zeros`` of either sign are what is expected."""
    own = sha256() if hashes else None
    theirs = None
    first: int | None = None
    at = 0
    for piece, like in _pairs(data, expected, zeros):
        if first is None and piece != like:
            first = at + next(i for i, pair in enumerate(zip(piece, like, strict=True)) if pair[0] != pair[1])
            theirs = own.copy() if own is not None else None
        if own is not None:
            own.update(piece)
        if theirs is not None:
            theirs.update(like)
        elif first is not None:
            break
        at += len(piece)
    digest = own.hexdigest() if own is not None else ""
    return first, digest, theirs.hexdigest() if theirs is not None else digest


def _pairs(data: TensorData, expected: TensorData, zeros: bool) -> Iterator[tuple[bytes, bytes]]:
    """The bytes of two tensors side by side, in pieces of equal length."""
    if zeros:
        for chunk in data.chunks():
            yield bytes(chunk), _zeros_like(chunk, data.dtype)
        return
    others = iter(expected.chunks())
    rest = memoryview(b"")
    for chunk in data.chunks():
        mine = chunk.cast("B")
        while mine:
            rest = rest or next(others).cast("B")
            size = min(len(mine), len(rest), _PIECE)
            yield bytes(mine[:size]), bytes(rest[:size])
            mine, rest = mine[size:], rest[size:]


def _zeros_like(chunk: memoryview, dtype: str) -> bytes:
    """Zeros with the signs that a piece's elements have: a negative number times 0 is a negative zero."""
    if dtype not in (*FLOATS, "float8_e4m3fn", "float8_e5m2"):  # all others have one zero
        return bytes(chunk.nbytes)
    import numpy as np

    values = np.frombuffer(chunk, array_dtype(dtype))
    zeros: bytes = np.copysign(np.zeros_like(values), values).tobytes()
    return zeros
