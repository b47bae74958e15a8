"""What an operation does besides computing its result: the table that clean-up passes share.

A node may be removed or merged only where nobody can tell. Names are kinds without underscores, of every dialect
(``dropout`` is nn.Dropout, a function and ONNX's). An operation of a place that is not listed may do
anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from elastic_ir.analysis.branches import kind_of
from elastic_ir.ir.functions import NAMED_FUNCTIONS
from elastic_ir.ir.graph import Graph, Literal, Node, Symbol, Value, WeightRef

#: Draw from the random generator; dropouts do so in training.
DROPOUTS = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featuredropout", "featurealphadropout",
    "stochasticdepth", "droppath",
}  # fmt: skip
RANDOM = DROPOUTS | {
    "rand", "randn", "randint", "randperm", "randlike", "randnlike", "randintlike", "normal", "bernoulli",
    "multinomial", "poisson", "uniform", "exponential", "rrelu", "gumbelsoftmax", "fractionalmaxpool2d",
    "fractionalmaxpool3d", "randomnormal", "randomuniform", "randomnormallike", "randomuniformlike",
}  # fmt: skip
#: Random where an option says so: the option's name.
RANDOM_BY = {
    "scaleddotproductattention": "dropout_p", "multiheadattention": "dropout", "lstm": "dropout", "gru": "dropout",
    "rnn": "dropout", "transformerencoderlayer": "dropout", "transformerdecoderlayer": "dropout",
}  # fmt: skip
#: Keep running statistics in training.
STATEFUL = {"batchnorm", "batchnorm1d", "batchnorm2d", "batchnorm3d", "syncbatchnorm", "instancenorm", "instancenorm1d",
            "instancenorm2d", "instancenorm3d"}  # fmt: skip
#: Raise, print, or change something that is no tensor.
EFFECTS = {
    "assert", "assertasync", "check", "checkissize", "print", "manualseed", "seed", "setgradenabled", "setdefaultdtype",
    "setnumthreads", "setrngstate", "backward", "registerhook", "apply", "map", "save", "symconstrainrange",
}  # fmt: skip
#: Operators of Python that write into a tensor on their left.
WRITERS = {
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "imatmul",
    "iand",
    "ior",
    "ixor",
    "setitem",
}
#: The place of ``inplace`` among the arguments of a function.
INPLACE = {
    "relu": 1, "relu6": 1, "silu": 1, "selu": 1, "mish": 1, "hardswish": 1, "hardsigmoid": 1, "elu": 2, "celu": 2,
    "leakyrelu": 2, "hardtanh": 3, "threshold": 3, "rrelu": 4, **dict.fromkeys(DROPOUTS, 3),
}  # fmt: skip
#: In-place operations that change a tensor's shape, and so what is read of it.
RESHAPERS = {
    "resize_",
    "resize_as_",
    "set_",
    "squeeze_",
    "unsqueeze_",
    "t_",
    "transpose_",
    "swapaxes_",
    "swapdims_",
}
#: Always give a tensor of their own; the result of anything else may share memory with what it reads.
FRESH = {
    "conv1d", "conv2d", "conv3d", "convtranspose1d", "convtranspose2d", "convtranspose3d", "linear", "bilinear",
    "matmul", "bmm", "mm", "addmm", "baddbmm", "embedding", "add", "sub", "mul", "div", "truediv", "pow", "neg", "exp",
    "abs", "sqrt", "rsqrt", "relu", "relu6", "gelu", "silu", "elu", "selu", "celu", "mish", "leakyrelu", "prelu",
    "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "softmax", "logsoftmax", "batchnorm",
    "batchnorm1d", "batchnorm2d", "batchnorm3d", "layernorm", "groupnorm", "rmsnorm", "instancenorm", "instancenorm1d",
    "instancenorm2d", "instancenorm3d", "localresponsenorm", "maxpool1d", "maxpool2d", "maxpool3d", "avgpool1d",
    "avgpool2d", "avgpool3d", "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptiveavgpool3d", "adaptivemaxpool2d", "cat",
    "stack", "mean", "sum", "clone", "scaleddotproductattention",
}  # fmt: skip
#: Read only a tensor's form, never its numbers.
FORM = {"size", "dim", "ndimension", "numel", "getattr", "isfloatingpoint"}
_FORM_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"}
#: Where functions without hidden effects live; a module is one of ``torch.nn``.
_PLACES = {
    "torch",
    "torch.functional",
    "torch.nn.functional",
    "torch._C._nn",
    "operator",
    "math",
    "method",
    "builtins",
    "",
}
_ONNX_DOMAINS = {"", "ai.onnx.ml.", "com.microsoft."}


def plain_kind(node: Node) -> str:
    """An operation's kind without underscores: ``relu`` also for ``relu_``."""
    return kind_of(node).replace("_", "")


def effect_of(node: Node) -> str:
    """What a node does besides computing: "random", "state", "in place", "effect", "unknown"; "" for nothing."""
    if node.kind in ("weight", "constant"):
        return ""
    if node.kind in ("input", "output"):
        return "effect"
    kind = plain_kind(node)
    if node.kind == "onnx":
        return _effect_of_onnx(node, kind)
    place = node.op.rpartition(".")[0]
    known = place == "nn" if node.kind == "module" else place in _PLACES or node.op in NAMED_FUNCTIONS
    if node.op.startswith("aten."):
        known = True
    if kind in RANDOM:
        rate = node.attributes.get("p", node.kwargs.get("p"))
        return "" if node.kind == "module" and rate == 0.0 and not written(node) else "random"
    if not known:
        return "unknown"
    if kind in EFFECTS:
        return "effect"
    if kind in RANDOM_BY and node.attributes.get(RANDOM_BY[kind], node.kwargs.get(RANDOM_BY[kind])):
        return "random"
    if kind in STATEFUL and keeps_statistics(node):
        return "state"
    return "in place" if written(node) else ""


def _effect_of_onnx(node: Node, kind: str) -> str:
    domain = node.op.removeprefix("onnx.").rpartition(".")[0]
    if (f"{domain}." if domain else "") not in _ONNX_DOMAINS:
        return "unknown"
    if any(isinstance(item, Symbol) and item.name == "body" for item in node.attributes.values()):
        return "unknown"  # its body may do anything
    if kind == "dropout":  # in training only where it says so; an operand since opset 12
        mode = node.args[2] if len(node.args) > 2 else None
        return "" if mode is None or (isinstance(mode, Literal) and not any(mode.values)) else "random"
    if kind == "batchnormalization" and node.attributes.get("training_mode", 0):
        return "state"
    return "random" if kind in RANDOM else ""


def keeps_statistics(node: Node) -> bool:
    """Whether a norm updates running statistics when the network is in training."""
    if node.kind == "module":
        return "running_mean" in node.weights
    training = node.kwargs.get("training", node.args[5] if len(node.args) > 5 else False)
    statistics = node.kwargs.get("running_mean", node.args[1] if len(node.args) > 1 else None)
    return training is not False and statistics is not None


def written(node: Node) -> list[Value | WeightRef]:
    """The operands that a node writes into; none for ONNX, whose values never change."""
    if node.kind in ("onnx", "input", "output", "weight", "constant"):
        return []
    found: list[Value | WeightRef] = []
    kind = kind_of(node)
    place = node.op.rpartition(".")[0]
    named = kind.endswith("_") and not kind.endswith("__") and node.kind != "module"
    flagged = node.attributes.get("inplace", node.kwargs.get("inplace", False))
    at = INPLACE.get(kind.replace("_", ""))
    if place.startswith("torch") and at is not None and len(node.args) > at:
        flagged = flagged or node.args[at]
    if named or flagged or (place == "operator" and kind in WRITERS):
        target = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(target, WeightRef) or (isinstance(target, Value) and target.is_tensor):
            found.append(target)
    out = node.kwargs.get("out")
    for item in out if isinstance(out, (list, tuple)) else (out,):
        if isinstance(item, (Value, WeightRef)):
            found.append(item)
    return found


def reads_form_only(node: Node) -> bool:
    """Whether a node reads a tensor's shape or type, and none of its numbers."""
    kind = plain_kind(node)
    if kind == "getattr":
        return len(node.args) > 1 and node.args[1] in _FORM_ATTRIBUTES
    return kind in FORM and node.kind == "method"


class Memory:
    """Which values may share memory, and which nodes write into it."""

    def __init__(self, graph: Graph) -> None:
        self._parent: dict[Value, Value] = {}
        self._writers: dict[Value, list[Node]] = {}
        writing = []
        outer = [node.output for node in graph if node.kind in ("input", "weight")]
        for node in graph:
            targets = written(node)
            if targets:
                writing.append((node, targets))
            if node.kind in ("onnx", "input", "output", "constant"):
                continue
            if reads_form_only(node) or (plain_kind(node) in FRESH and not targets):
                continue
            if node.kind != "module" and node.weight_names():
                outer.append(node.output)  # a view of a weight, perhaps
            for value in node.operands():
                if value.is_tensor or value in self._parent:
                    self._join(value, node.output)
        #: What stands for memory that is not the graph's own: inputs and weights.
        self.outer = {self.root(value) for value in outer}
        self.to_weights = {
            node for node, targets in writing if any(isinstance(t, WeightRef) for t in targets)
        }
        self.reshaped: set[Value] = set()
        for node, targets in writing:
            for target in targets:
                if isinstance(target, Value):
                    self._writers.setdefault(self.root(target), []).append(node)
                    if kind_of(node) in RESHAPERS:
                        self.reshaped.add(self.root(target))

    def root(self, value: Value) -> Value:
        """The value that stands for all that may share memory with this one."""
        at = value
        while self._parent.get(at, at) is not at:
            at = self._parent[at]
        while value is not at:
            following = self._parent[value]
            self._parent[value] = at
            value = following
        return at

    def _join(self, one: Value, other: Value) -> None:
        first, second = self.root(one), self.root(other)
        self._parent.setdefault(first, first)
        self._parent[second] = first

    def writers(self, value: Value) -> list[Node]:
        """The nodes that may write into a value's memory."""
        return self._writers.get(self.root(value), [])

    def changes(self, values: Iterable[Value]) -> bool:
        """Whether any of these values may be written into."""
        return any(self.writers(value) for value in values)
