"""The check that a module runs, and runs every unit of the plan: a forward that returns proves nothing."""

from __future__ import annotations

import torch
from torch import fx, nn

from elastic_ir.errors import EmitError
from elastic_ir.graph import Graph


def check_runs(module: nn.Module, graph: Graph) -> int:
    """Run a module once, in evaluation mode without gradients; hooks see which blocks were executed.

    Returns how many blocks ran. Raises EmitError that names the blocks which did not (Llama iterates
    ``layers[:num_hidden_layers]`` and silently skips the rest), or the error that the forward raised. Modes are put
    back. A module on the meta device is run without arithmetic.
    """
    inputs = getattr(graph.origin, "inputs", None)
    if inputs is None or graph._structure is None:
        return 0
    wanted: dict[str, bool] = {}
    for stage in graph.structure.stages:
        for block in stage.all_blocks:
            wanted[block.path] = False
    handles = []
    if isinstance(module, fx.GraphModule):
        # a straight-line program of leaf calls: a block runs if it stands in it, and containers are never called
        named = [str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr")]
        for path in wanted:
            wanted[path] = any(name == path or name.startswith(f"{path}.") for name in named)
    for path in [path for path, ran in wanted.items() if not ran]:
        target: nn.Module = module.get_submodule(path)

        def note(*_: object, path: str = path) -> None:
            wanted[path] = True

        handles.append(target.register_forward_hook(note))
    modes = {part: part.training for part in module.modules()}
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    moved = inputs.to(device)
    try:
        module.eval()
        with torch.no_grad():
            module(*moved.args, **moved.kwargs)
    except Exception as error:
        raise EmitError(f"the network made does not run: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes.items():
            part.training = mode
    idle = [path for path, ran in wanted.items() if not ran]
    if idle:
        raise EmitError(
            f"{len(idle)} of {len(wanted)} blocks would never run, {idle[0]!r} first: {graph.name}.forward does not "
            "follow the number of its blocks (a count in its configuration was not updated)"
        )
    return len(wanted)
