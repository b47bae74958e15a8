"""Names within a node's message that follow it: of the modules around it, and of what its bodies read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_ir.onnx_model.source import SCOPES, bodies, module_scopes, path_step

if TYPE_CHECKING:
    import onnx


def relocate(proto: onnx.NodeProto, before: str, after: str) -> None:
    """Names after modules follow the block to its new place."""
    old, new = before.split("."), after.split(".")
    place = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
    if place is None or len(old) != len(new):
        return
    head, tail = ".".join(old[: place + 1]), ".".join(new[: place + 1])
    for entry in proto.metadata_props:
        scopes = module_scopes(proto) if entry.key == SCOPES else None
        if scopes is not None:
            entry.value = repr([_moved(scope, head, tail) for scope in scopes])
    if proto.name.startswith("/"):
        proto.name = _moved_name(proto.name, old[: place + 1], new[place])


def rename_inside(body: onnx.GraphProto, renames: dict[str, str]) -> None:
    """Let a body read names of the outer graph under their new ones, where it does not hide them."""
    own = {entry.name for entry in body.input} | {tensor.name for tensor in body.initializer}
    own |= {name for node in body.node for name in node.output}
    outer = {old: new for old, new in renames.items() if old not in own}
    for node in body.node:
        for place, name in enumerate(node.input):
            if name in outer:
                node.input[place] = outer[name]
        for inner in bodies(node):
            rename_inside(inner, outer)
    for entry in body.output:
        if entry.name in outer:
            entry.name = outer[entry.name]


def _moved(scope: str, head: str, tail: str) -> str:
    return tail + scope[len(head) :] if scope == head or scope.startswith(head + ".") else scope


def _moved_name(name: str, head: list[str], number: str) -> str:
    """``/layer1/layer1.2/conv1/Conv`` with the block's number replaced."""
    path: list[str] = []
    parts = name.split("/")
    for place, part in enumerate(parts[1:-1], 1):
        names = part.split(".")
        before = len(path)
        path += path_step(path, part)
        if path[: len(head)] == head and before < len(head) <= len(path):
            names[len(names) - (len(path) - len(head)) - 1] = number
            parts[place] = ".".join(names)
            for inside in range(place + 1, len(parts) - 1):  # a container's children carry its name
                if not parts[inside].startswith(part + "."):
                    break
                parts[inside] = parts[place] + parts[inside][len(part) :]
            break
    return "/".join(parts)
