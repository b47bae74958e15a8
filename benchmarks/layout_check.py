"""What is tried with one network: traced, compared, stretched, squeezed back, loaded natively, read by names, ONNX."""

from __future__ import annotations

import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import elastic_ir as eir
from benchmarks.layout_networks.entry import Inputs, Network
from benchmarks.layout_stages import (
    Comparison,
    Shown,
    best,
    compare,
    found_stages,
    second_names,
    table_faults,
)

#: Takes each fact as soon as it is known, so that a process that is ended has told what it found.
Tell: TypeAlias = Callable[..., None]
LARGE = 1e3  #: what no initialisation gives: memory that a constructor left for a checkpoint to fill


def fresh(inputs: Inputs) -> Inputs:
    """The inputs with tensors of their own: some forwards write into what they are given."""
    copied: Inputs = _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    return copied


def outputs(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a module gives, with the same draws each time."""
    torch.manual_seed(1)
    args, keywords = fresh(inputs)
    with torch.no_grad():
        result = module(*args, **keywords)
    return [leaf.clone() for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-4) -> str:
    """How two lists of tensors differ; empty where they do not."""
    if len(ours) != len(theirs):
        return f"{len(ours)} tensors come out, {len(theirs)} of the other"
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            return f"output {place} has shape {tuple(a.shape)}, the other's {tuple(b.shape)}"
        if torch.equal(a, b):
            continue
        if not a.is_floating_point():
            return f"output {place} differs"
        gap, scale = (a - b).abs().max().item(), max(b.abs().max().item(), 1e-6)
        if not gap <= tolerance * scale:  # also where it is not a number
            return f"output {place} differs by {gap:.2g} of {scale:.2g}"
    return ""


def randomise(module: nn.Module) -> None:
    """No weight stays a constant (a layer scale starts at 1e-6, a gate at 0), and no variance gets negative."""
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.is_floating_point() and tensor.numel():
                if not tensor.abs().max() < LARGE:
                    tensor.zero_()
                tensor.add_(0.02 * torch.randn_like(tensor))
        held = module.state_dict(keep_vars=True)
        for name, buffer in module.named_buffers():
            if name in held and buffer.is_floating_point():
                buffer.mul_(1 + 0.1 * torch.rand_like(buffer))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict; some hold other things too."""
    state = module.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, Tensor)}


def exported(name: str) -> bool:
    """Whether a network is of the tenth that is exported to ONNX."""
    return zlib.crc32(name.encode()) % 10 == 0


def examine(network: Network, tell: Tell) -> None:
    """All steps for one network."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tell(phase="build")
    module = network.build().eval()
    randomise(module)
    inputs = network.inputs()
    first = outputs(module, inputs)
    if not first:
        raise ValueError("no tensor comes out")
    if not all(torch.isfinite(tensor).all() for tensor in first if tensor.is_floating_point()):
        raise ValueError("what comes out is not finite")
    state = tensors_of(module)
    faults = table_faults(network, {name: tuple(tensor.shape) for name, tensor in state.items()})
    faults += second_names(network, module.state_dict(keep_vars=True))
    tell(parameters=sum(p.numel() for p in module.parameters()), table=faults[:5])

    tell(phase="trace")
    start = time.perf_counter()
    try:
        graph = eir.trace(module, *fresh(inputs))
        found = found_stages(graph, list(state))
    except eir.ElasticError as error:
        kind = "untraced" if isinstance(error, eir.TraceError) else "refused"
        tell(stages=kind, message=str(error))
        tell(phase="names", **by_names(network, state, None))
        return
    tell(trace_s=round(time.perf_counter() - start, 2), depth=graph.depth)
    tell(found=[f"{s.name}: {sum(s.free)} of {len(s.blocks)} by {s.units}" for s in found])
    comparison = best(network, list(state), found)
    tell(
        stages="right" if comparison.right else "wrong",
        missing=comparison.missing, extra=comparison.extra, kept_differ=comparison.kept_differ,
    )  # fmt: skip
    tell(phase="stretch")
    deeper = None
    try:
        deeper = eir.stretch(graph, to_stages={s.name: len(s.blocks) + (s.units or (1,))[0] for s in found})
        made = deeper.to_module().eval()
        tell(emitted=type(made).__name__)
        ours = outputs(made, inputs)
        tell(phase="squeeze", change=squeezed_back(deeper, found, state, inputs, first))
    except eir.ElasticError as error:
        deeper = None
        tell(change=f"refused: {error}")
    whole = any(want.grows for want, _ in comparison.pairs.values()) and not comparison.missing
    if whole and network.depth is not None and network.step:
        tell(phase="native")
        try:
            tell(native=natively_deeper(network, graph, comparison, inputs))
        except eir.ElasticError as error:
            tell(native=f"refused: {error}")
    if exported(network.name):
        tell(phase="onnx")
        chosen, wanted = (graph, first) if deeper is None else (deeper, ours)
        try:
            tell(onnx=in_onnxruntime(chosen, inputs, wanted))
        except eir.ElasticError as error:
            tell(onnx=f"refused: {error}")
    tell(phase="names", **by_names(network, state, found))


def squeezed_back(
    deeper: eir.Graph,
    found: Sequence[Shown],
    state: Mapping[str, Tensor],
    inputs: Inputs,
    first: list[Tensor],
) -> str:
    """Without what was cloned: every tensor is the source's, bit for bit, and so is what comes out."""
    back = eir.squeeze(deeper, to_stages={stage.name: len(stage.blocks) for stage in found})
    again = {name: tensor for name, tensor in back.state_dict().items() if isinstance(tensor, Tensor)}
    if again.keys() != state.keys() or not all(torch.equal(again[name], state[name]) for name in state):
        return "wrong: squeezed back it is not the source"
    differs = difference(outputs(back.to_module().eval(), inputs), first)
    return f"wrong: squeezed back, {differs}" if differs else "equal"


def natively_deeper(network: Network, graph: eir.Graph, comparison: Comparison, inputs: Inputs) -> str:
    """Stretched as the natively deeper network is: loaded into it strictly, run and compared."""
    counts = {
        name: len(ours.blocks) + want.grows * len(ours.key) // len(want.key)
        for name, (want, ours) in comparison.pairs.items()
    }
    deeper = eir.stretch(graph, to_stages=counts)
    native = network.deeper()
    assert native is not None
    randomise(native.eval())
    try:
        native.load_state_dict(deeper.state_dict(), strict=True)
    except RuntimeError as error:
        return f"wrong: does not load ({' '.join(str(error).split())[:300]})"
    differs = difference(outputs(deeper.to_module().eval(), inputs), outputs(native, inputs))
    return f"wrong: {differs}" if differs else "equal"


def in_onnxruntime(graph: eir.Graph, inputs: Inputs, wanted: Sequence[Tensor]) -> str:
    """Exported, run by onnxruntime and compared with PyTorch."""
    import onnxruntime

    from elastic_ir.emit.onnx.save import save_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        save_onnx(graph, path)
        session = onnxruntime.InferenceSession(path.read_bytes())
        given = [leaf for leaf in _pytree.tree_leaves(fresh(inputs)) if isinstance(leaf, Tensor)]
        names = [value.name for value in session.get_inputs()]
        if len(names) != len(given):
            return f"wrong: the file takes {len(names)} inputs, the network {len(given)}"
        results = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
        differs = difference([torch.as_tensor(result) for result in results], wanted, tolerance=1e-3)
        return f"wrong: {differs}" if differs else "equal"


def by_names(network: Network, state: Mapping[str, Tensor], traced: Sequence[Shown] | None) -> dict[str, str]:
    """What the state dict alone shows, against the table and against what was traced."""
    names = list(state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pt")
        torch.save(dict(state), path)
        try:
            shown = found_stages(eir.load(path), names)
        except eir.ElasticError as error:
            return {"names": "refused", "names_message": str(error)}
        except Exception as error:  # whatever is raised is a result
            return {"names": "crash", "names_message": f"{type(error).__name__}: {error}"}
    against = best(network, names, shown)
    facts = {"names": "right" if against.right else "wrong"}
    if not against.right:
        facts["names_message"] = f"missing {against.missing}, extra {against.extra}"
    if traced is not None:
        facts["names_as_traced"] = "equal" if compare(traced, shown).right else "other"
    return facts


def facts_of(network: Network) -> dict[str, Any]:
    """All facts of one network, examined in this process."""
    facts: dict[str, Any] = {}
    examine(network, lambda **more: facts.update(more))
    return {**facts, "phase": "done"}
