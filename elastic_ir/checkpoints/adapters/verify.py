"""Whether an adapter holds what its record states: every tensor is compared with its origin. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from elastic_ir.checkpoints.adapters.change import Change
from elastic_ir.checkpoints.adapters.follow import follow_adapter
from elastic_ir.checkpoints.adapters.read import read_adapter
from elastic_ir.checkpoints.held import Held, Place, sources_of
from elastic_ir.checkpoints.record import Step, read_record
from elastic_ir.checkpoints.side_files import adapters_in
from elastic_ir.checkpoints.verify import Difference, Verified, compare
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG, adapter_weights
from elastic_ir.formats.model_folder import CheckpointSource, label_of
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import nbytes, same_bytes

#: Entries of settings that name the base, which is another one for the target.
_OF_BASE = {"base_model_name_or_path": None, "revision": None}


def verify_adapter(
    folder: Path, against: Sequence[str | Path], hashes: bool, tell: Callable[[int, int], None] | None
) -> Verified:
    """Compare every tensor of an adapter's folder with its origin; see
    :func:`~elastic_ir.checkpoints.verify.verify_checkpoint`.
    """
    target, steps = _held(folder), read_record(folder)
    step = steps[-1] if steps else None
    places = sources_of(Place(folder), step, [Place(Path(path)) for path in against])
    origins = [_held(place.path) for place in places]
    wanted = step.sources if step is not None else ()
    found = Verified(folder, tuple(place.path for place in places), wanted, len(target.tensors))
    found.config, found.nbytes = ADAPTER_CONFIG, sum(map(nbytes, target.tensors.values()))
    found.differences += _missing(target, origins, step)
    compare(found, target, origins, step or Step("", ("",), {}), hashes, tell)
    return found


def _held(folder: Path) -> Held:
    tensors = dict(read_adapter(folder).tensors)
    return Held(label_of(folder), tensors, None, {}, set(tensors), {})


def _missing(target: Held, origins: Sequence[Held], step: Step | None) -> Iterator[Difference]:
    """Tensors that the record, or where there is none the source, has and the adapter has not."""
    lineage = step.lineage if step is not None else {}
    for name in sorted(lineage.keys() - target.tensors.keys()):
        yield Difference(name, lineage[name].name, "is missing")
    copied = {step.origin(name).name if step is not None else name for name in (*target.tensors, *lineage)}
    gone = set(step.gone or ()) if step is not None else set()
    for source in origins:
        for name in sorted(source.tensors.keys() - copied - gone):
            yield Difference(name, f"{source.name}:{name}", "is missing")


def beside_differences(graph: Graph, source: Graph, step: Step) -> Iterator[Difference]:
    """What is not as it should be of the adapters in a model's folder, by those in the folder of its source."""
    origin, before = graph.origin, source.origin
    if not (isinstance(origin, CheckpointSource) and isinstance(before, CheckpointSource)):
        return
    change: Change | None = None
    for folder in adapters_in(before):
        inner = folder.relative_to(before.folder)
        change = change or Change.of_steps(
            {key: weight.storage.data for key, weight in graph.weights.items()}, [step], str(origin.folder)
        )
        try:
            adapter = read_adapter(folder, before.root)
            wanted = follow_adapter(adapter, change, adapter.base)
        except (SourceError, PlanError):
            continue  # it was left out
        name = f"{inner.as_posix()}/".removeprefix("./")
        if adapter_weights(origin.folder / inner) is None:
            yield Difference(
                f"{name}{ADAPTER_CONFIG}", f"{before.label}:{name}{ADAPTER_CONFIG}", "is missing"
            )
            continue
        own = read_adapter(origin.folder / inner, origin.root)
        if {**own.config, **_OF_BASE} != {**wanted.config, **_OF_BASE}:
            yield Difference(f"{name}{ADAPTER_CONFIG}", "", "is not the source's in step with the layers")
        for tensor in sorted(own.tensors.keys() | wanted.tensors.keys()):
            one, two = own.tensors.get(tensor), wanted.tensors.get(tensor)
            was = wanted.lineage[tensor].name if two is not None else ""
            if one is None or two is None:
                yield Difference(
                    f"{name}{tensor}", was, "is missing" if one is None else "is of no layer's source"
                )
            elif (one.shape, one.dtype) != (two.shape, two.dtype) or not same_bytes(one, two):
                yield Difference(f"{name}{tensor}", was, "differs")
