"""Network morphism: convolutions become deeper or get larger kernels, and the function stays the same.

Wei, Wang, Rui & Chen 2016, *Network Morphism*: a convolution as two in a row (section 3.2), with an activation between
them that begins as the identity (section 3.4, P-activation; here a PReLU of slope 1), and kernels with zeros around
them (section 3.5). The two kernels are worked out when they are written, always to the same numbers.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal, TypeAlias

from elastic_ir.choices import check_choice
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Argument, Graph, Node
from elastic_ir.onnx_model.layers import Readers, weight_readers
from elastic_ir.passes.infra import Pass, left, reasons
from elastic_ir.passes.infra.chosen import Chosen
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.identity import Constant
from elastic_ir.tensors.kernels import Factor, PaddedKernel, Split
from elastic_ir.tensors.recipes import Zeros, with_values

_CONVOLUTIONS = {"nn.Conv1d", "nn.Conv2d", "nn.Conv3d"}
_EXACT = 1e-5
Mode: TypeAlias = Literal["depth", "kernel"]


@dataclasses.dataclass(frozen=True)
class Morph(Pass):
    """Make one convolution two in a row, or its kernel larger (network morphism): the function stays the same."""

    name: ClassVar[str] = "morph"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = "neither: file and latency grow by what is added"

    mode: Mode = "depth"  #: "depth": two convolutions for one; "kernel": zeros around the kernel
    kernel: int | None = None  #: size of the first kernel (depth, 1 by default), or of the new one (kernel)
    second: int | None = None  #: size of the second kernel; the smallest that reaches as far by default
    mid: int | None = None  #: channels between the two; by default the fewest that keep the function exactly
    activation: bool = True  #: a PReLU of slope 1 between the two, which training may bend
    tolerance: float | None = None  #: how far the two may be from the one, relative to it; none by default
    seed: int = 0  #: of the numbers that the search for the two begins with
    stages: Sequence[str] | str = ()  #: names of stages; all convolutions of the network by default
    layers: Sequence[str] | str = ()  #: paths of convolutions; * stands for anything

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_pytorch(graph)
        self._check()
        chosen = Chosen(graph, self.stages, self.layers)
        readers = weight_readers(graph)
        done: list[str] = []
        skipped: dict[str, str] = {}
        for node in graph.nodes:
            if node.kind != "module" or node.op not in _CONVOLUTIONS or not chosen(node):
                continue
            reason = _why_not(node, graph, readers)
            if not reason:
                make = self._deepen if self.mode == "depth" else self._enlarge
                reason = make(node, graph, rewriter)
            if reason:
                skipped[node.scope] = reason
            else:
                done.append(node.scope)
        if not done:
            raise PlanError(
                f"there is no convolution that can be morphed{reasons(skipped) or ': none was chosen'}"
            )
        #: Plain data for reports: paths of the convolutions that were morphed, and why others were not.
        rewriter.report({"layers": done, "skipped": skipped})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        what = "are two now" if self.mode == "depth" else f"have kernels of {self.kernel}"
        return f"{len(report['layers'])} convolutions {what}{left(report['skipped'])}"

    def _check(self) -> None:
        check_choice("mode", self.mode, Mode)
        if self.mode == "kernel" and self.kernel is None:
            raise PlanError("mode=kernel needs the size of the new kernels; give kernel=5 for example")
        if any(given is not None and given < 1 for given in (self.kernel, self.second, self.mid)):
            raise PlanError("kernel, second and mid are 1 or more")

    # -- two for one -----------------------------------------------------------------------------------------------

    def _deepen(self, node: Node, graph: Graph, rewriter: Rewriter) -> str:
        """Split a convolution; the reason where that cannot be."""
        weight = graph.weights[node.weights["weight"]]
        rows, columns, *size = weight.shape
        groups = _whole(node.attributes["groups"])
        first = tuple(min(self.kernel or 1, extent) for extent in size)
        second = tuple(self.second or k - f + 1 for k, f in zip(size, first, strict=True))
        surplus = [f + s - 1 - k for f, s, k in zip(first, second, size, strict=True)]
        if min(surplus) < 0 or any(more % 2 for more in surplus):
            return (
                f"kernels of {list(first)} and {list(second)} do not cover one of {size} evenly on all sides"
            )
        if any(surplus) and node.attributes.get("padding_mode", "zeros") != "zeros":
            return "its padding is not of zeros, so a larger kernel would read something else"
        whole = prod(f + s - 1 for f, s in zip(first, second, strict=True))
        fewest = min(-(-columns * whole // prod(second)), -(-(rows // groups) * whole // prod(first)))
        middle = self.mid if self.mid is not None else fewest * groups
        if middle % groups:
            return f"mid={middle} is not a multiple of its {groups} groups"
        seed = zlib.crc32(f"{self.seed} {weight.name}".encode())
        given = self.tolerance if self.tolerance is not None else _EXACT
        split = Split(node.scope, weight.storage.data, groups, middle, first, second, seed, given)
        if not split.exact and self.tolerance is None:
            return (
                f"{middle} channels between kernels of {list(first)} and {list(second)} cannot make every kernel of "
                f"{size}; mid={fewest * groups} can, or allow a tolerance"
            )
        self._insert(node, split, surplus, graph, rewriter)
        return ""

    def _insert(self, node: Node, split: Split, surplus: list[int], graph: Graph, rewriter: Rewriter) -> None:
        """The node becomes the first of the two; the second, which has the bias and the stride, comes behind."""
        weight = graph.weights[node.weights["weight"]]
        bias = graph.weights.get(node.weights.get("bias", ""))
        data, rank = weight.storage.data, len(split.first)
        dilation, none = _sizes(node.attributes["dilation"]), (0,) * rank
        padding = tuple(
            p + more // 2 * d
            for p, more, d in zip(_padding(node, weight.shape[2:]), surplus, dilation, strict=True)
        )
        # all padding in front of both keeps the borders exact; a pointwise layer hands zeros on as zeros
        here, behind = (none, padding) if prod(split.first) == 1 else (padding, none)
        value, beside = node.output, list(node.weights.values())[-1]
        source, between = node.operands()[0].type, [value]
        if self.activation:
            slope = with_values(Constant((1,), weight.dtype, 1.0), data)
            act = rewriter.insert_layer(
                "nn.PReLU", value, path=f"{node.scope}_act", attributes={"num_parameters": 1, "init": 1.0},
                weights={"weight": slope}, beside=beside,
            )  # fmt: skip
            value, beside = act.output, act.weights["weight"]
            between.append(value)
        weights = {"weight": with_values(Factor(split, 1), data)}
        if bias is not None:
            weights["bias"] = bias.storage.data
        rewriter.insert_layer(
            node.op, value, path=node.scope, weights=weights, beside=beside, prunable={"weight"},
            attributes={**node.attributes, "in_channels": split.middle, "kernel_size": split.second,
                        "padding": behind},
            origins={role: graph.weights[name].origin for role, name in node.weights.items()},
        )  # fmt: skip
        rewriter.replace_tensor(weight.name, with_values(Factor(split, 0), data))
        if bias is not None:
            rewriter.replace_tensor(bias.name, with_values(Zeros((split.middle,), bias.dtype), data))
        rewriter.set_attributes(
            node, out_channels=split.middle, kernel_size=split.first, stride=(1,) * rank, padding=here
        )
        if source is not None and node.output.type is not None:
            extents = [
                n + 2 * p - d * (k - 1)
                for n, p, d, k in zip(source.shape[-rank:], here, dilation, split.first, strict=True)
            ]
            shape = (*source.shape[: -rank - 1], split.middle, *extents)
            for each in between:
                rewriter.set_shape(each, shape)

    # -- a larger kernel -------------------------------------------------------------------------------------------

    def _enlarge(self, node: Node, graph: Graph, rewriter: Rewriter) -> str:
        """Put zeros around a kernel and pad by as much; the reason where that cannot be."""
        weight = graph.weights[node.weights["weight"]]
        size = weight.shape[2:]
        more = [_whole(self.kernel) - extent for extent in size]
        if max(more) <= 0:
            return f"its kernel is {list(size)} already"
        if min(more) < 0 or any(extra % 2 for extra in more):
            return f"a kernel of {list(size)} does not lie in the middle of one of {self.kernel}"
        if node.attributes.get("padding_mode", "zeros") != "zeros":
            return "its padding is not of zeros, so a larger kernel would read something else"
        dilation = _sizes(node.attributes["dilation"])
        padding = tuple(
            p + d * extra // 2 for p, d, extra in zip(_padding(node, size), dilation, more, strict=True)
        )
        kernel = (_whole(self.kernel),) * len(size)
        data = weight.storage.data
        rewriter.replace_tensor(weight.name, with_values(PaddedKernel(data, kernel), data))
        rewriter.set_attributes(node, kernel_size=kernel, padding=padding)
        return ""


def _why_not(node: Node, graph: Graph, readers: dict[int, Readers]) -> str:
    """Why a convolution cannot be morphed in either way; "" where it can."""
    if "weight" not in node.weights or set(node.weights) - {"weight", "bias"}:
        return "its weight is computed from others"
    weights = [graph.weights[name] for name in node.weights.values()]
    if any(len(readers[id(weight.storage)]) > 1 for weight in weights):
        return "it is used more than once"
    if any(weight.mask is not None for weight in weights):
        return "it has a mask, and which of the new weights would be pruned is not defined"
    if "float" not in weights[0].dtype:
        return f"its weight is {weights[0].dtype}"
    return ""


def _whole(item: Argument) -> int:
    assert isinstance(item, int)
    return item


def _sizes(item: Argument) -> tuple[int, ...]:
    assert isinstance(item, tuple)
    return tuple(_whole(part) for part in item)


def _padding(node: Node, size: Sequence[int]) -> tuple[int, ...]:
    """A convolution's padding on each side, in numbers."""
    given = node.attributes["padding"]
    if given == "valid":
        return (0,) * len(size)
    if given == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(_sizes(node.attributes["dilation"]), size, strict=True))
    return _sizes(given)
