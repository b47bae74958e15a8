"""Whether a checkpoint holds what its record states: every tensor is compared with its origin, streamed.

The last step of the record names each tensor's origin in the sources, and the layers' plan; what it does not name is
to be the first source's tensor of that name, byte for byte. Two files are read piece by piece, so memory does not
depend on the size of the model. Only what a recipe multiplied is computed again, by that recipe. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from elastic_ir.checkpoints.beside import Beside, compare_beside
from elastic_ir.checkpoints.dcp.verify import beside_differences
from elastic_ir.checkpoints.gguf.verify import metadata_differences
from elastic_ir.checkpoints.held import Held, Place, configuration_of, load_headers, sources_of, steps_held
from elastic_ir.checkpoints.oracle.verification import network_check
from elastic_ir.checkpoints.record import Origin, Step
from elastic_ir.checkpoints.side_files import adapters_in
from elastic_ir.errors import SourceError
from elastic_ir.formats.adapter_folder import is_adapter
from elastic_ir.formats.compound_folder import network_in
from elastic_ir.formats.dcp.folder import DcpSource
from elastic_ir.formats.gguf.parts import GgufSource
from elastic_ir.formats.model_folder import CONFIG, RECORD, CheckpointSource, label_of
from elastic_ir.formats.ranges import check_distant
from elastic_ir.formats.training_folder import TrainingFolder
from elastic_ir.tensors.arrays import FLOATS, array_dtype
from elastic_ir.tensors.gathered import Gathered
from elastic_ir.tensors.lazy import Mask, MaskedData, TensorData, nbytes, side_by_side
from elastic_ir.tensors.recipes import Scaled


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
    beside: Beside | None = None  #: the files beside it, where it is a part of a folder of several
    left_out: tuple[
        str, ...
    ] = ()  #: of a training's folder what lies beside the weights, which nothing compares
    is_file: bool = False  #: whether it is a GGUF file, and no folder
    label: str = ""  #: what it is called to a user, and what the sources are
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.label = self.label or str(self.folder)
        self.against = self.against or tuple(map(str, self.sources))

    @property
    def how(self) -> str:
        """``record``, ``names`` where there is none, or ``copies`` where the origins were not at hand."""
        return "names" if not self.wanted else "record" if self.sources else "copies"


def verify_checkpoint(
    folder: str | Path,
    against: Sequence[str | Path] = (),
    *,
    hashes: bool = False,
    check: bool = True,
    component: str | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Verified:
    """Compare every tensor of a checkpoint folder, a GGUF file or an adapter with its origin, and return what differs.

    Meanwhile ``check`` compares names, shapes and kinds of layers of a folder with the network that its library builds
    from its configuration, where it can, in a process of its own. Of a GGUF file the metadata is compared too, of a
    pipeline all files of its other parts.

    ``against`` are the sources, in the record's order, also URLs and models of the hub; without them what has their
    names beside this one, in the hub's cache, or behind the URL that the record names, is taken, and where there is
    nothing, copies of one origin are compared with each other. A folder without a record is compared by names.
    ``hashes`` has the SHA-256 of each tensor's bytes kept; ``component`` chooses among the networks of a folder of
    several, without it the one with a record; ``tell`` is called with bytes done and in all.
    Raises SourceError for a folder that cannot be read whole (:func:`load_headers`), for another number of sources
    than the record has, and where there is neither a record nor a source.
    """
    place = Place.of(folder)
    whole = place.path
    if is_adapter(whole):
        from elastic_ir.checkpoints.adapters.verify import verify_adapter

        return verify_adapter(whole, against, hashes, tell)
    folder = network_in(whole, component) if place.awaited is None else whole
    inner = folder.relative_to(whole)
    part = inner.as_posix() if folder != whole else None
    place = replace(place, path=folder)
    graph = load_headers(place)
    if place.awaited is not None:
        place.awaited.fetch_side()  # the record is one of these files
    steps = steps_held(folder, graph)
    step = steps[-1] if steps else None
    places = sources_of(place, step, [Place.of(path, part).inside(inner) for path in against])
    paths = tuple(one.path for one in places)
    labels = list(step.plan) if step is not None else []
    target = Held.of(folder, graph, labels)
    keys = [step.key(number) if step is not None else None for number in range(len(places))]
    sources = [load_headers(one, graph, key) for one, key in zip(places, keys, strict=True)]
    origins = [Held.of(path, source, labels) for path, source in zip(paths, sources, strict=True)]
    found = Verified(folder, paths, step.sources if step is not None else (), len(target.tensors))
    found.config = configuration_of(folder)
    found.label, found.against = place.label, tuple(one.label for one in places)
    found.is_file = isinstance(graph.origin, GgufSource)
    found.nbytes = sum(map(nbytes, target.tensors.values()))
    found.differences += _misplaced(target, origins, step)
    if target.masks is not None:
        found.differences += [
            Difference(name, "", "is a mask of no tensor")
            for name in target.masks
            if name not in target.tensors
        ]
    plan = step.layers(target.name) if step is not None else {}
    if sources and isinstance(graph.origin, GgufSource):
        found.differences += [
            Difference(found.config, "", text) for text in metadata_differences(graph, sources, plan, step)
        ]
    if sources and isinstance(graph.origin, DcpSource):
        found.differences += [
            Difference(name, f"{origins[0].name}:{other}" if other else "", text)
            for name, other, text in beside_differences(graph, sources[0], plan, step)
        ]
    if isinstance(graph.origin, TrainingFolder):
        found.left_out = tuple(name for name in graph.origin.along() if name != RECORD)
    if paths and place.awaited is None:
        found.beside = beside = compare_beside(whole, inner, paths[0])
        found.differences += (
            [
                Difference(name, f"{label_of(beside.source)}/{name}", what)
                for name, what in beside.differing.items()
            ]
            if beside is not None
            else []
        )
    if (
        step is not None
        and sources
        and isinstance(sources[0].origin, CheckpointSource)
        and adapters_in(sources[0].origin)
    ):
        from elastic_ir.checkpoints.adapters.verify import beside_differences as adapters_differences

        found.differences += adapters_differences(graph, sources[0], step)
    begun = network_check(graph, sources[0] if sources else None, plan)
    with begun if check and isinstance(graph.origin, CheckpointSource) else nullcontext() as outcome:
        compare(found, target, origins, step or Step("", ("",), {}), hashes, tell)
        if outcome is not None:
            found.network, new = outcome()
            found.differences += [Difference(found.config, "", text) for text in new]
    check_distant(data for held in (target, *origins) for data in held.tensors.values())
    return found


# -- names ---------------------------------------------------------------------------------------------------------


def _misplaced(target: Held, origins: Sequence[Held], step: Step | None) -> Iterator[Difference]:
    """Tensors that are missing, or more, or of another layer than the plan states."""
    told: set[str] = set()
    for difference in _by_plan(target, origins, step):
        told.add(difference.tensor)
        yield difference
    if step is not None:  # of layers that are not there at all, the plan's sources are not known
        for name in sorted(step.lineage.keys() - target.tensors.keys() - told):
            yield Difference(name, step.lineage[name].name, "is missing")


def _by_plan(target: Held, origins: Sequence[Held], step: Step | None) -> Iterator[Difference]:
    """What differs from the plan, layer by layer, and from the names outside of the layers."""
    if origins:
        first = origins[0]
        wanted = first.outside if step is not None else set(first.tensors)
        for name in sorted(wanted - target.tensors.keys()):
            yield Difference(name, f"{first.name}:{name}", "is missing")
    if step is not None:
        plan = step.layers(target.name)
        orders = {label: [number for _, number in layers] for label, layers in plan.items()}
        for label, order in orders.items():
            yield from _off_plan(label, order, target, origins, step)
        yield from _not_by_layer(orders, target, origins, step)


def _not_by_layer(
    orders: Mapping[str, list[int]], target: Held, origins: Sequence[Held], step: Step
) -> Iterator[Difference]:
    """Tensors with an entry for each layer whose entries are of other layers than the plan states."""
    for name, origin in step.lineage.items():
        how = origin.gathering
        before = [len((origins[0] if origins else target).layers[label]) for label in orders]
        if how is not None and not any(map(how.follows, orders.values(), before)):
            yield Difference(name, "", "has entries of other layers than the plan states")


def _off_plan(
    label: str, numbers: list[int], target: Held, origins: Sequence[Held], step: Step
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


def compare(
    found: Verified,
    target: Held,
    origins: Sequence[Held],
    step: Step,
    hashes: bool,
    tell: Callable[[int, int], None] | None,
) -> None:
    """Compare the bytes of every tensor with its origin's, or without sources with those of other copies of it."""
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


def _of_source(source: Held, origin: Origin, data: TensorData, target: Held, name: str) -> _Expected:
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
    yield from side_by_side(data, expected)


def _zeros_like(chunk: memoryview, dtype: str) -> bytes:
    """Zeros with the signs that a piece's elements have: a negative number times 0 is a negative zero."""
    if dtype not in (*FLOATS, "float8_e4m3fn", "float8_e5m2"):  # all others have one zero
        return bytes(chunk.nbytes)
    import numpy as np

    values = np.frombuffer(chunk, array_dtype(dtype))
    zeros: bytes = np.copysign(np.zeros_like(values), values).tobytes()
    return zeros
