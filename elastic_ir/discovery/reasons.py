"""Nothing that repeats: which of the reasons it has, in one clause that says what there is instead."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from elastic_ir.discovery.from_graph import GraphReader
from elastic_ir.discovery.from_names import NameReader, in_channels
from elastic_ir.discovery.levels import kept_whole
from elastic_ir.discovery.parts import Group, Part
from elastic_ir.ir.graph import Graph, Symbol
from elastic_ir.ir.numbering import is_index, split_number, width_of
from elastic_ir.ir.operations import operation_of
from elastic_ir.ir.structure import Container
from elastic_ir.safety.limits import GAPS


def why_nothing(reader: GraphReader | NameReader) -> str:
    """What stands in the way: layers of one kind that widen one after the other (DenseNet), or no likeness at all."""
    again = _applied_again(reader.graph)
    if again is not None:
        return again
    whole = kept_whole(reader.graph)
    if whole:
        return whole[0]
    made = _made_for_one_machine(reader.graph)
    if made is not None:
        return made
    widening: list[tuple[int, str, list[int]]] = []
    reaching: list[str] = []
    for part in reader.tree.walk():
        mixed = _numbered_twice(part) or _backwards(part)
        if mixed is not None:
            return mixed
        for container, parts in reader.containers(part):
            groups = reader.groups(container, parts)
            if container in reader.paired:
                block, partner = reader.paired[container]
                return (
                    f"each block of {container.label!r} hands a value to a block elsewhere or gets one from there "
                    f"({block} and {partner} are such a pair: long skips, as U-ViT has them), so that a copy would "
                    "have no partner"
                )
            tapped = _tapped(container, groups, reader.graph)
            if tapped is not None:
                return tapped
            reaching += _reaching_out(container, groups, reader)
            widths = [
                next((in_channels(s) for n, s in group.weights.items() if len(s) > 1 and "." in n), 0)
                for group in groups
            ]
            rising = all(left < right for left, right in itertools.pairwise(widths))
            if len(groups) > 2 and rising and len({group.kind for group in groups}) == 1:
                widening.append((len(groups), container.label, widths))
    if widening:
        count, label, widths = max(widening, key=lambda one: one[0])
        return (
            f"the {count} layers of {label!r} are of one kind, but each is wider than the one before it "
            f"({widths[0]}, {widths[1]}, {widths[2]} channels and so on), so none fits in a second time and there is "
            "nothing to clone or delete"
        )
    if reaching:
        return reaching[0]
    plain = "no two blocks in a row have equal operations and weight shapes, so there is nothing to clone or delete"
    return plain + _about_bodies(reader.graph)


def _numbered_twice(part: Part) -> str | None:
    """A list whose numbers are padded here and not there, so that no rule names another one, or far apart."""
    series: dict[str, list[str]] = {}
    for name in part.children:
        prefix, number = split_number(name) or (name, "")
        if number:
            series.setdefault(prefix, []).append(number)
    for prefix, numbers in series.items():
        if width_of(numbers) is None:
            padded = next(number for number in numbers if not is_index(number))
            other = next(number for number in numbers if width_of((padded, number)) is None)
            return (
                f"the children of {part.path or 'the network'!r} are numbered in two ways ({prefix}{padded} and "
                f"{prefix}{other}), so it does not show how another one would be named; rename them to one way"
            )
        first, last = (min(map(int, numbers)), max(map(int, numbers))) if numbers else (0, 0)
        if last - first >= len(numbers) + GAPS:
            return (
                f"the children of {part.path or 'the network'!r} are numbered from {first} to {last}, and only "
                f"{len(numbers)} are there, so they are not a list of layers"
            )
    return None


def _backwards(part: Part) -> str | None:
    """A list that its user runs through from its end, as a flow's density does."""
    layers = [
        child for name, child in part.children.items() if is_index(name) and child.nodes and child.weights
    ]
    numbers = [int(child.name) for child in layers]
    if len(numbers) < 2 or numbers != sorted(numbers, reverse=True):
        return None
    return (
        f"the children of {part.path or 'the network'!r} run from the last one to the first ({layers[0].path} before "
        f"{layers[1].path}), and names of new ones are known only where numbers rise as the blocks run; "
        "give the network a list in the order in which it runs them"
    )


def _reaching_out(
    container: Container, groups: list[Group], reader: GraphReader | NameReader
) -> Iterator[str]:
    """Blocks of equal weights that hand something out besides what flows on, though not all of them alike."""
    if not isinstance(reader, GraphReader) or not any(group.weights for group in groups):
        return
    weights = Counter(repr(sorted(group.weights.items())) for group in groups)
    if weights.most_common(1)[0][1] < 2:
        return
    inside = {node for group in groups for node in group.nodes}
    for group in groups:
        for value in (node.output for node in group.nodes if not group.sound):
            outside = [user for user in reader.users.get(value, ()) if user not in inside]
            if outside and value not in group.taps and group is not groups[-1]:
                name = operation_of(outside[0]).spelled
                where = outside[0].scope or "its own forward"
                yield (
                    f"{group.path} hands a value to {name} in {where}, outside of {container.label!r}, which does not "
                    "take one from each of these blocks in the same way, so that it is not known what a copy has to "
                    "hand there"
                )
                return


def _made_for_one_machine(graph: Graph) -> str | None:
    """What onnxruntime's optimiser did to an ONNX file so that blocks cannot be parted any more."""
    if any(node.op.startswith("onnx.com.microsoft.nchwc.") for node in graph):
        return (
            "onnxruntime's optimiser has put its layers into a layout of one machine (com.microsoft.nchwc); optimise "
            "it no further than the level 'extended', or change the file from before and optimise what comes out"
        )
    for node in graph:
        if node.op == "operator.getitem" and node.args[1] == 3:
            fused = next((value.node.op for value in node.operands()), "")  # a weight is not an operand
            if "Skip" in fused and "LayerNormalization" in fused:
                return (
                    "an optimiser has fused each block's last sum with the next one's norm "
                    f"({fused.removeprefix('onnx.')} of two results), so that no block ends before the next begins; "
                    "change the file from before and optimise what comes out"
                )
    return None


def _tapped(container: Container, groups: list[Group], graph: Graph) -> str | None:
    """Blocks that would repeat, but each of whose results is a result of the network as well."""
    results = next((node.operands() for node in graph if node.kind == "output"), [])
    taps = [group for group in groups if group.preserving and not set(results).isdisjoint(group.outputs)]
    if len(taps) < 2 or len({group.signature for group in taps}) == len(taps):
        return None
    return (
        f"{len(taps)} blocks of {container.label!r} hand their results to outputs of the network as well, so none can "
        "be cloned or deleted; export the network without these outputs (hidden states)"
    )


def _about_bodies(graph: Graph) -> str:
    """What is not looked into: the bodies of control flow (ONNX's If, Loop and Scan)."""
    kinds = {node.op.removeprefix("onnx.") for node in graph if Symbol("body") in node.attributes.values()}
    if not kinds:
        return ""
    return f"; what is in the bodies of its {' and '.join(sorted(kinds))} nodes is kept whole and never cut"


def _applied_again(graph: Graph) -> str | None:
    """A layer that runs several times over the same weights (ALBERT, Lan et al. 2020, section 3.1)."""
    layer_names = {name for name, weight in graph.weights.items() if weight.layer}
    # what makes a weight out of another one (a norm of it) reads that several times, each time otherwise
    calls = [(name, node.op) for node in graph for name in node.weight_names() if name in layer_names]
    times = Counter(calls)
    count = max(times.values(), default=0)
    again = [call for call in calls if times[call] == count]
    owners = [name.split(".")[:-1] for name in dict.fromkeys(name for name, _ in again)]
    if count < 2 or len(owners) < 2:
        return None
    if again != again[: len(again) // count] * count:  # inside each block, before the next one runs
        return None
    common = list(itertools.takewhile(lambda names: len(set(names)) == 1, zip(*owners, strict=False)))
    path = ".".join(names[0] for names in common)
    return (
        f"{path or 'one layer'} runs {count} times over the same weights, so its depth is a count and there is nothing "
        "to clone; set that count (num_hidden_layers in a configuration) and load the same weights"
    )
