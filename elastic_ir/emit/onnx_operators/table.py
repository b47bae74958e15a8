"""The table of ONNX operators that become PyTorch: each with its function, and how operands and attributes are taken.

An attribute is a keyword of the function; one that the function lacks, or a value that ``only`` does not list, is
refused before anything runs. So the functions' signatures and this table are the whole of what is supported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from elastic_ir.emit.onnx_operators import layers, math, norms, quantized, recurrent, resize, tensors

#: Keywords that emission fills in: the opset, how many results are wanted, a result's dtype, a tensor for its device.
CONTEXT = {"opset", "outputs", "result", "like"}
_OPERANDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Operator:
    """How an operator is run: ``function(*operands, **attributes)``."""

    function: Callable[..., Any]
    #: operands that may be Python numbers: literals and sizes are not made tensors
    plain: tuple[int, ...] = ()
    scalars: tuple[int, ...] = ()  #: of these one may be a Python number, where a literal is a single one
    #: the values that an attribute may have
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    #: attributes whose keyword in the function is another
    names: Mapping[str, str] = field(default_factory=dict)
    #: keywords that no attribute sets but one of ``names``
    fixed: Mapping[str, Any] = field(default_factory=dict)
    since: int = 1  #: the first opset of this form
    module: bool = False  #: the function is a class of modules, since it acts otherwise in training

    @cached_property
    def keywords(self) -> frozenset[str]:
        """The attributes that it may have, and what emission fills in; of torch's own functions those in ``names``."""
        own = self.function.__module__.startswith("elastic_ir.")
        parameters = inspect.signature(self.function).parameters.keys() if own else set()
        return frozenset((parameters - self.fixed.keys()) | self.names.keys())

    @cached_property
    def most(self) -> int | None:
        """The most operands that it takes; None for any number, and for torch's own functions."""
        if self.module or not self.function.__module__.startswith("elastic_ir."):
            return None
        parameters = inspect.signature(self.function).parameters.values()
        if any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in parameters):
            return None
        return sum(item.kind in _OPERANDS for item in parameters)


def _table(table: Mapping[str, Callable[..., Any]], **options: Any) -> dict[str, tuple[Operator, ...]]:
    """Operators of one form each, all with the same options."""
    return {name: (Operator(function, **options),) for name, function in table.items()}


def _variants(
    function: Callable[..., Any], key: str, table: Mapping[str, str], **options: Any
) -> dict[str, tuple[Operator, ...]]:
    """Operators that are one function, distinguished by a keyword."""
    return {name: (Operator(function, fixed={key: value}, **options),) for name, value in table.items()}


_FORWARD = {"direction": ("forward", "reverse", "bidirectional"), "input_forget": (0,)}
_BATCH_NORM = {"spatial": (1,)}
_FILLS = {"mode": ("constant", "reflect", "edge", "wrap")}
_MODES = {"mode": ("nearest", "linear")}
_REDUCTION = {"reduction": ("none", "add", "mul", "max", "min")}
_BLOCKS = {"mode": ("DCR", "CRD")}
_TYPES = {"to": tuple(math.DTYPES)}

#: By name, for each the forms that it had, older ones first.
OPERATORS: dict[str, tuple[Operator, ...]] = {
    **_table({
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": math.div, "Mod": math.mod, "Equal": torch.eq,
        "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    }, scalars=(0, 1)),
    **_table({
        "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "And": torch.logical_and, "Asin": torch.asin,
        "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh, "BitShift": math.bit_shift,
        "BitwiseAnd": torch.bitwise_and, "BitwiseNot": torch.bitwise_not, "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor, "CastLike": math.cast_like, "Ceil": torch.ceil, "Cos": torch.cos,
        "Cosh": torch.cosh, "Det": torch.det, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
        "Identity": math.identity, "IsInf": math.is_inf, "IsNaN": torch.isnan, "Log": torch.log,
        "Mean": math.mean, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or,
        "Reciprocal": torch.reciprocal, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
        "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "Xor": torch.logical_xor,
    }),
    **_variants(math.fold, "operation", {"Max": "maximum", "Min": "minimum", "Sum": "add"}),
    "Pow": (Operator(math.power, scalars=(1,)),),
    "Where": (Operator(torch.where, scalars=(1, 2)),),
    "Cast": (Operator(math.cast, only=_TYPES),),
    "Clip": (Operator(math.clip, plain=(1, 2)),),
    # activations
    **_table({
        "HardSigmoid": math.hard_sigmoid, "HardSwish": F.hardswish, "Mish": F.mish, "PRelu": math.prelu,
        "Relu": torch.relu, "Selu": math.selu, "Shrink": math.shrink, "Sigmoid": torch.sigmoid,
        "Softplus": F.softplus, "Softsign": F.softsign, "Swish": math.swish, "com.microsoft.BiasGelu": math.biased_gelu,
    }),
    **_table({"Celu": F.celu, "Elu": F.elu}, names={"alpha": "alpha"}),
    **_table({"Gelu": F.gelu, "com.microsoft.Gelu": F.gelu}, names={"approximate": "approximate"}),
    "com.microsoft.FastGelu": (Operator(math.biased_gelu, fixed={"approximate": "tanh"}),),
    "LeakyRelu": (Operator(F.leaky_relu, names={"alpha": "negative_slope"}),),
    "com.microsoft.QuickGelu": (Operator(math.swish, names={"alpha": "alpha"}, fixed={"alpha": 1.702}),),
    "ThresholdedRelu": (Operator(F.threshold, names={"alpha": "threshold"}, fixed={"threshold": 1.0, "value": 0.0}),),
    **_variants(math.along_axis, "function",
                {"Hardmax": "hardmax", "LogSoftmax": "log_softmax", "Softmax": "softmax"}),
    # matrices
    **_table({
        "Einsum": math.einsum, "Gemm": math.gemm, "MatMul": torch.matmul,
        "com.microsoft.FusedMatMul": math.fused_matmul,
    }),
    # reductions
    **_table({"CumSum": math.cum_sum, "TopK": math.top_k}, plain=(1,)),
    **_variants(math.reduce, "function", {
        "ReduceL1": "l1", "ReduceL2": "l2", "ReduceLogSum": "log_sum", "ReduceLogSumExp": "log_sum_exp",
        "ReduceMax": "max", "ReduceMean": "mean", "ReduceMin": "min", "ReduceProd": "prod", "ReduceSum": "sum",
        "ReduceSumSquare": "sum_square",
    }, plain=(1,)),
    **_variants(math.arg_extreme, "function", {"ArgMax": "argmax", "ArgMin": "argmin"}),
    # layers
    **_table({
        "Conv": layers.conv, "ConvTranspose": layers.conv_transpose, "AveragePool": layers.average_pool,
        "GlobalAveragePool": layers.global_average_pool, "GlobalLpPool": layers.global_lp_pool,
        "GlobalMaxPool": layers.global_max_pool, "LpPool": layers.lp_pool, "MaxPool": layers.max_pool,
    }),
    "com.microsoft.FusedConv": (
        Operator(layers.fused_conv, only={"activation": tuple(layers.ACTIVATIONS)}),
    ),
    "LSTM": (Operator(recurrent.lstm, only={**_FORWARD, "activations": recurrent.LSTM_ACTIVATIONS}),),
    "GRU": (Operator(recurrent.gru, only={**_FORWARD, "activations": recurrent.GRU_ACTIVATIONS}),),
    "RNN": (Operator(recurrent.rnn, only={**_FORWARD, "activations": recurrent.RNN_ACTIVATIONS}),),
    # normalisations
    "BatchNormalization": (Operator(norms.BatchNorm, only=_BATCH_NORM, module=True),),
    "Dropout": (Operator(norms.Dropout, module=True),),
    **_table({
        "GroupNormalization": norms.group_norm, "InstanceNormalization": norms.instance_norm,
        "LRN": norms.local_response_norm, "LayerNormalization": norms.layer_norm, "LpNormalization": norms.lp_norm,
        "MeanVarianceNormalization": norms.mean_variance_norm, "RMSNormalization": norms.rms_norm,
        "SimplifiedLayerNormalization": norms.rms_norm, "com.microsoft.SkipLayerNormalization": norms.skip_layer_norm,
    }),
    # data movement
    **_table({
        "Compress": tensors.compress, "Concat": tensors.concat, "EyeLike": tensors.eye_like,
        "Flatten": tensors.flatten, "GatherElements": tensors.gather_elements, "GatherND": tensors.gather_nd,
        "NonZero": tensors.non_zero, "ReverseSequence": tensors.reverse_sequence, "Scatter": tensors.scatter_elements,
        "Transpose": tensors.transpose,
    }),
    "ConstantOfShape": (Operator(tensors.constant_of_shape, plain=(0,)),),
    "DepthToSpace": (Operator(tensors.depth_to_space, only=_BLOCKS),),
    "SpaceToDepth": (Operator(tensors.space_to_depth, only=_BLOCKS),),
    "Expand": (Operator(tensors.expand, plain=(1,)),),
    "Gather": (Operator(tensors.gather, plain=(1,)),),
    "OneHot": (Operator(tensors.one_hot, plain=(1,)),),
    "Pad": (Operator(tensors.pad, plain=(1, 2, 3), only=_FILLS),),
    "Range": (Operator(tensors.arange, plain=(0, 1, 2)),),
    "Reshape": (Operator(tensors.reshape, plain=(1,)),),
    "ScatterElements": (Operator(tensors.scatter_elements, only=_REDUCTION),),
    "ScatterND": (Operator(tensors.scatter_nd, only=_REDUCTION),),
    "Slice": (Operator(tensors.slice_, plain=(1, 2, 3, 4)),),
    "Split": (Operator(tensors.split, plain=(1,)),),
    "Squeeze": (Operator(tensors.squeeze, plain=(1,)),),
    "Tile": (Operator(tensors.tile, plain=(1,)),),
    "Trilu": (Operator(tensors.trilu, plain=(1,)),),
    "Unsqueeze": (Operator(tensors.unsqueeze, plain=(1,)),),
    # resizing
    "GridSample": (Operator(resize.grid_sample, only={"mode": ("linear", "bilinear", "nearest", "cubic", "bicubic")}),),
    "Resize": (
        Operator(resize.upsample, plain=(1,), only=_MODES, since=10),
        Operator(resize.resize, plain=(1, 2, 3), only=resize.ONLY, since=11),
    ),
    "Upsample": (Operator(resize.upsample, plain=(1,), only=_MODES),),
    # quantised numbers
    **_table({
        "ConvInteger": quantized.conv_integer, "DequantizeLinear": quantized.dequantize,
        "DynamicQuantizeLinear": quantized.dynamic_quantize,
        "MatMulInteger": quantized.matmul_integer,
    }),
    "QuantizeLinear": (Operator(quantized.quantize, only={"output_dtype": (0, 2, 3, 4, 5)}),),
}  # fmt: skip


def operator_for(name: str, opset: int) -> Operator | None:
    """The form that an operator has in an opset; None where there is none here."""
    forms = [form for form in OPERATORS.get(name, ()) if form.since <= opset]
    return forms[-1] if forms else None
