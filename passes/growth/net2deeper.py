"""Net2DeeperNet: new layers that begin as the identity, so that the deeper network computes what the source did.

Chen, Goodfellow & Shlens 2016, *Net2Net: Accelerating Learning via Knowledge Transfer*, section 2.3. Behind a layer and
its activation comes a layer of the same kind that hands on what it reads, a batch norm that does nothing in evaluation,
and the activation once more, which must change nothing the second time: relu(relu(x)) = relu(x).

Where a unit is nothing but such a layer (VGG), the new one is a clone of a unit, so class and names stay those of the
natively built network. Elsewhere the layers are inserted into the block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from elastic_ir.channels.torch_rules import source
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import Trait, has, known_kind, layer_of, operation_of
from elastic_ir.ir.structure import Block
from elastic_ir.passes.infra import Pass, left, reasons
from elastic_ir.passes.infra.chosen import Chosen, blocks_of
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.identity import IdentityKernel, idle_norm
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Zeros, with_values

#: Norms that depend on each input, so that no setting makes them the identity; the new layer gets none.
_MOVING = {"groupnorm", "layernorm", "instancenorm"}


@dataclasses.dataclass(frozen=True)
class _Place:
    """A layer, the batch norm behind it if there is one, and its activation."""

    layer: Node
    norm: Node | None
    activation: Node


@dataclasses.dataclass(frozen=True)
class Net2Deeper(Pass):
    """Put layers behind layers that begin as the identity (Net2Net): the function stays the same in evaluation."""

    name: ClassVar[str] = "net2deeper"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = "neither: file and latency grow by what is added"

    count: int = 1  #: new layers behind each place, one after the other
    per_unit: int | None = None  #: at most so many places in each block, the first; all by default
    stages: Sequence[str] | str = ()  #: names of stages; all layers of the network by default
    layers: Sequence[str] | str = ()  #: paths of the layers behind which one is put; * stands for anything
    kernel: int | None = None  #: the new kernels' size, odd; the layer's own by default
    linear: bool = False  #: where the activation is not idempotent (GELU), put the new layer in front of it
    dense: bool = False  #: grow a pruned network as well; the new layers have no mask

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._check(graph)
        skipped: dict[str, str] = {}
        places = self._places(graph, skipped)
        if not places:
            raise PlanError(
                f"there is no place for a layer that begins as the identity{reasons(skipped) or ': no layer '}"
                f"{'' if skipped else 'with an activation behind it was chosen'}"
            )
        owner = blocks_of(graph)
        behind: dict[str, int] = {}
        shared = _shared(graph)
        for place in places:
            block = owner.get(place.activation)
            template = self._template(block, place, graph, rewriter, shared) if block is not None else None
            behind[place.layer.scope] = self.count
            if block is not None and template is not None:
                self._clone(block, template, graph, rewriter)
            else:
                self._insert(place, graph, rewriter)
        #: Plain data for reports: behind which layers how many came, and why none came elsewhere.
        rewriter.report({"behind": behind, "skipped": skipped})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        behind = sum(report["behind"].values())
        return f"{behind} layers begin as the identity{left(report['skipped'], 'places ')}"

    def _check(self, graph: Graph) -> None:
        self._need_pytorch(graph)
        if self.count < 1 or (self.per_unit is not None and self.per_unit < 1):
            raise PlanError("count and per_unit are numbers of layers, 1 or more")
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            raise PlanError(
                f"kernel={self.kernel} has no middle, so it cannot be the identity; give an odd size"
            )
        masked = next((name for name, weight in graph.weights.items() if weight.mask is not None), None)
        if masked is not None and not self.dense:
            raise PlanError(
                f"{graph.name} is pruned ({masked!r} has a mask), and an identity layer is almost all zero "
                "before anything is pruned, so it has no mask of its own; stretch carries masks, and dense=true leaves "
                "new layers without one"
            )

    # -- where -----------------------------------------------------------------------------------------------------

    def _places(self, graph: Graph, skipped: dict[str, str]) -> list[_Place]:
        chosen = Chosen(graph, self.stages, self.layers)
        owner = blocks_of(graph)
        taken: dict[Block, int] = {}
        places = []
        for node in graph:
            if not known_kind(node) or not has(node, Trait.ACTIVATION):
                continue
            before = _layer_before(node)
            if before is None or not chosen(before[0]):
                continue
            layer, norm = before
            if not _idempotent(node) and not self.linear:
                skipped[layer.scope] = (
                    f"{node.op} twice is not {node.op} once; linear=true puts the new layer in front of it, where "
                    "the two layers begin as one linear map"
                )
                continue
            block = owner.get(node)
            if block is not None and self.per_unit is not None:
                if taken.get(block, 0) >= self.per_unit:
                    continue
                taken[block] = taken.get(block, 0) + 1
            places.append(_Place(layer, norm, node))
        return places

    # -- a unit that is nothing but a layer ------------------------------------------------------------------------

    def _template(
        self, block: Block, place: _Place, graph: Graph, rewriter: Rewriter, shared: set[int]
    ) -> Block | None:
        """The free block whose clone can be the new layer; None where the layer has to be put into the block."""
        stage = rewriter.stage_of(block)
        if block.output is not place.activation.output or stage.period != 1:
            return None
        if not _plain(block) or block.nodes[0].op != place.layer.op:
            return None
        for model in (block, *stage.blocks):
            if not (model in stage.blocks and model.preserving and _plain(model)):
                continue
            if [node.op for node in model.nodes] != [node.op for node in block.nodes]:
                continue
            layer = model.nodes[0]
            width = layer.attributes.get("kernel_size", ())
            fits = isinstance(width, tuple) and all(isinstance(k, int) and k % 2 for k in width)
            own = not any(
                id(graph.weights[n].storage) in shared for node in model.nodes for n in node.weight_names()
            )
            wanted = self.kernel is None or width == (self.kernel,) * len(
                width if isinstance(width, tuple) else ()
            )
            if fits and own and wanted and _idempotent(model.nodes[-1]):
                return model
        return None

    def _clone(self, block: Block, template: Block, graph: Graph, rewriter: Rewriter) -> None:
        for _ in range(self.count):
            clone = rewriter.clone_block(template, after=block)
            layer = clone.nodes[0]
            weight = graph.weights[layer.weights["weight"]]
            groups = layer.attributes.get("groups", 1)
            assert isinstance(groups, int)
            kernel = IdentityKernel(weight.shape, weight.dtype, groups)
            rewriter.set_mask(weight.name, None)
            rewriter.set_data(weight.name, with_values(kernel, weight.storage.data))
            if "bias" in layer.weights:
                bias = graph.weights[layer.weights["bias"]].storage.data
                rewriter.set_data(layer.weights["bias"], with_values(Zeros(bias.shape, bias.dtype), bias))
            for node in clone.nodes[1:]:
                for role, data in _idle(node, graph).items():
                    rewriter.set_data(node.weights[role], data)

    # -- a layer within a block ------------------------------------------------------------------------------------

    def _insert(self, place: _Place, graph: Graph, rewriter: Rewriter) -> None:
        norm, act = place.norm, place.activation
        behind = act.output if _idempotent(act) else act.operands()[0]
        for _ in range(self.count):
            fresh = self._insert_layer(place, behind, graph, rewriter)
            behind = fresh.output
            if norm is not None:
                node = rewriter.insert_layer(
                    norm.op, behind, path=norm.scope, attributes=norm.attributes, weights=_idle(norm, graph),
                    buffers=("running_mean", "running_var", "num_batches_tracked"),
                    beside=list(norm.weights.values())[-1],
                    origins={role: graph.weights[name].origin for role, name in norm.weights.items()},
                )  # fmt: skip
                behind = node.output
            if not _idempotent(act):
                continue
            if act.kind == "module":
                node = rewriter.insert_layer(act.op, behind, path=act.scope, attributes=act.attributes)
            else:
                node = rewriter.insert_call(
                    act.op,
                    (behind, *act.args[1:]),
                    like=behind,
                    behind=behind.node,
                    kind=act.kind,
                    kwargs=act.kwargs,
                )
                rewriter.replace_uses(behind, node.output)
            behind = node.output

    def _insert_layer(self, place: _Place, behind: Value, graph: Graph, rewriter: Rewriter) -> Node:
        layer = place.layer
        source = graph.weights[layer.weights["weight"]]
        rows = source.shape[0]
        attributes = dict(layer.attributes)
        attributes["bias"] = "bias" in layer.weights or place.norm is None
        if layer.op == "nn.Linear":
            attributes["in_features"] = rows
            shape: tuple[int, ...] = (rows, rows)
            groups = 1
        else:
            given = attributes.get("groups", 1)
            dilation = attributes["dilation"]
            assert isinstance(given, int) and isinstance(dilation, tuple)
            groups = given
            kernel = tuple(self.kernel or extent - 1 + extent % 2 for extent in source.shape[2:])
            attributes.update(
                in_channels=rows, kernel_size=kernel, stride=(1,) * len(kernel),
                padding=tuple(_whole(d) * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)),
            )  # fmt: skip
            shape = (rows, rows // groups, *kernel)
        data = source.storage.data
        weights = {"weight": with_values(IdentityKernel(shape, source.dtype, groups), data)}
        if attributes["bias"]:
            weights["bias"] = with_values(Zeros((rows,), source.dtype), data)
        return rewriter.insert_layer(
            layer.op, behind, path=layer.scope, attributes=attributes, weights=weights,
            beside=layer.weights.get("bias", source.name), prunable={"weight"},
            origins={role: graph.weights[name].origin for role, name in layer.weights.items()},
        )  # fmt: skip


def _whole(item: object) -> int:
    assert isinstance(item, int)
    return item


def _idempotent(node: Node) -> bool:
    return known_kind(node) != "" and has(node, Trait.IDEMPOTENT)


def _layer_before(activation: Node) -> tuple[Node, Node | None] | None:
    """The layer that an activation stands behind, and the batch norm between; None where there is no such layer."""
    value = source(activation)
    norm: Node | None = None
    while value is not None:
        node = value.node
        kind, layer = known_kind(node), layer_of(node)
        if node.kind != "module":
            return None
        if layer is not None and not layer.transposed:
            axes = "1d" if layer.matrix else kind[-2:]
            fits = norm is None or known_kind(norm) == f"batchnorm{axes}"
            return (node, norm) if layer.weight is not None and fits else None
        if kind == "identity" or operation_of(node).family in _MOVING:
            pass
        elif kind.startswith("batchnorm") and "running_mean" in node.weights and norm is None:
            norm = node
        else:
            return None
        value = source(node)
    return None


def _plain(block: Block) -> bool:
    """Whether a block is nothing but a layer, perhaps its batch norm, and an activation that may come twice."""
    nodes = block.nodes
    found = _layer_before(nodes[-1]) if nodes and _idempotent(nodes[-1]) else None
    if found is None or block.output is not nodes[-1].output:
        return False
    layer, norm = found
    return (
        nodes == [node for node in (layer, norm, nodes[-1]) if node is not None] and block.input in layer.args
    )


def _idle(norm: Node, graph: Graph) -> dict[str, TensorData]:
    """The tensors of a batch norm like this one that does nothing; none for what is not a norm."""
    if not norm.weights:
        return {}
    epsilon = norm.attributes["eps"]
    assert isinstance(epsilon, float)
    sources = {role: graph.weights[name].storage.data for role, name in norm.weights.items()}
    made = idle_norm({role: (data.shape, data.dtype) for role, data in sources.items()}, epsilon)
    return {role: with_values(data, sources[role]) for role, data in made.items()}


def _shared(graph: Graph) -> set[int]:
    """Tensors that more than one name or node holds, whose clones would stay tied to them."""
    uses: dict[int, int] = {}
    for weight in graph.weights.values():
        uses[id(weight.storage)] = uses.get(id(weight.storage), 0) + 1
    return {key for key, count in uses.items() if count > 1}
