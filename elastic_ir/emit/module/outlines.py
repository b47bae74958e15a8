"""The module of a graph that was read from a file, described by what that file says of it: without torch.

The outline of the source is laid out as the module itself would be. What only shows when the class is there, whether it
does what the graph says, is stated as unproven, and whoever builds the class proves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from elastic_ir.emit.module.in_class import PROOFS, in_its_class, is_plain_container, levels_of
from elastic_ir.errors import EmitError
from elastic_ir.formats.pickles.description import Outline, OutlineTensor, describe_module
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import Emitted

if TYPE_CHECKING:
    from torch import nn


def describe_outline(graph: Graph) -> dict[str, Any] | None:
    """What a file is to say of the module of a graph, by what the file that it was read from says; no torch.

    None where that takes a module: where there is no outline, or layers of it were changed. What remains to be proven
    of the class is stated. Raises EmitError where names and shapes made are not the planned ones.
    """
    stated, edits = graph.origin.stated, graph.edits
    if stated is None or edits.edited_layers or edits.ghosts or graph.reference is not None:
        return None
    graph.emitted = Emitted()
    source: Outline = stated.outline
    made, unproven, *_ = in_its_class(graph, cast("nn.Module", source))
    if made is None:
        return None
    changed = [container for level in levels_of(graph) for container in level if container.changed]
    # what runs a container of the network's own class is seen only by tracing it
    own = [box for box in changed if not is_plain_container(source.get_submodule(box.path))]
    if own or (changed and not stated.at_hand):
        unproven = max("wiring", unproven, key=PROOFS.index)
    outline = cast("Outline", made)
    _assign(outline, graph)
    return {**describe_module(outline), **({"unproven": unproven} if unproven else {})}


def _assign(outline: Outline, graph: Graph) -> None:
    """Give every parameter and buffer the form of its weight, tied names the same one; EmitError for other names."""
    done: dict[tuple[int, bool], OutlineTensor] = {}
    found = {}
    for path, part in outline.named_modules(remove_duplicate=False):
        head = f"{path}." if path else ""
        for table in (part._parameters, part._buffers):
            for role, old in table.items():
                weight = graph.weights.get(head + role)
                if old is None:
                    continue
                if weight is not None:
                    key = (id(weight.storage), table is part._parameters)
                    if role in ("weight", "bias") and old.shape != weight.shape:
                        from elastic_ir.emit.module.sizes import state_sizes  # few plans change a size

                        state_sizes(part, weight.shape)
                    fresh = OutlineTensor(weight.shape, weight.dtype, old.requires_grad)
                    table[role] = old = done.setdefault(key, fresh)
                if role not in part._non_persistent_buffers_set:
                    found[head + role] = old.shape
    planned = {name: weight.shape for name, weight in graph.weights.items() if weight.persistent}
    if found != planned:
        odd = sorted(name for name in {*found, *planned} if found.get(name) != planned.get(name))
        raise EmitError(f"the module made is not what a strict load expects ({', '.join(odd[:3])})")
