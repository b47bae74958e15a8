"""Scores of weights at a rewind point, by which pruning at initialization chooses: SNIP, GraSP, SynFlow.

A score is what a weight is worth: the lowest are pruned first, in all layers together. The network is called with
its own weights or stand-ins put in for the length of a call (``torch.func.functional_call``): weights, buffers,
gradients and modes are afterwards as they were, also after an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from elastic_ir.errors import MaskError
from elastic_ir.ir.example_inputs import tensors_in
from elastic_ir.tensors.smallest import pruned_count
from elastic_ir.tensors.torch_bridge import unwrapped
from elastic_ir.tickets.magnitude import masks_from_scores, prunable_weights
from elastic_ir.tickets.masked import plain_name

#: What a loss is here: the network's output and the targets to one number, a mean over the batch.
Loss: TypeAlias = Callable[[Any, Any], Tensor]
#: Inputs and targets of one batch.
Batch: TypeAlias = tuple[Any, Any]


def snip_scores(
    module: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    masks: Mapping[str, Tensor] | None = None,
    leave_out: Collection[str] | str = (),
) -> dict[str, Tensor]:
    """Connection sensitivity: the size of gradient times weight, ``|g * w|`` (Lee et al. 2019, SNIP, equation 5).

    The gradient is that of the mean loss over all samples of the batches, taken before its size is. Batch norms use
    the batch's statistics, as in the authors' code; dropout is off. ``masks`` are put on the weights before.
    The result has a float64 tensor of each prunable weight's shape, by plain name.
    """
    network = _Network(module, leave_out, masks)
    gradients = network.gradients(_listed(batches), loss)
    return {
        name: (gradient * network.weights[name].detach().double()).abs()
        for name, gradient in gradients.items()
    }


def grasp_scores(
    module: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    temperature: float = 200.0,
    leave_out: Collection[str] | str = (),
) -> dict[str, Tensor]:
    """What the gradient's norm loses without a weight, ``w * Hg`` (Wang et al. 2020, GraSP, equation 8 negated).

    The paper's ``S(-w) = -w * Hg`` is the change of the squared gradient norm (by half) when the weight is removed;
    weights of the largest S go first, as in the authors' code, so that the worth of a weight is ``-S``: a signed
    number. g and H are of the mean loss over all samples, with the outputs divided by ``temperature`` (200 there), over
    the prunable weights alone. Batch norms use the batch's statistics; dropout is off. Outputs must be one tensor.
    The result is as that of :func:`snip_scores`.
    """
    if temperature <= 0:
        raise MaskError(f"the temperature {temperature} is not above 0")

    def softened(outputs: Any, targets: Any) -> Tensor:
        if not isinstance(outputs, Tensor):
            raise MaskError(
                f"GraSP divides outputs by a temperature, but they are a {type(outputs).__name__}"
            )
        return loss(outputs / temperature, targets)

    network = _Network(module, leave_out)
    listed = _listed(batches)
    gradients = network.gradients(listed, softened)
    products = network.gradients(listed, softened, along=gradients)
    return {name: product * network.weights[name].detach().double() for name, product in products.items()}


def synflow_scores(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    masks: Mapping[str, Tensor] | None = None,
    leave_out: Collection[str] | str = (),
) -> dict[str, Tensor]:
    """Synaptic flow: each weight's share in the sum of all paths' products of ``|w|`` (Tanaka et al. 2020).

    ``input_shape`` is one input's, without the batch. No data is used: the input is ones, all parameters (biases and
    norms' scales among them, as in the authors' code) are replaced by their sizes, and everything is float64. Norms
    are made linear so that nothing cancels: batch norms divide by the running deviation and subtract nothing, others
    only scale and shift. Activations of ReLU's kind are the identity, which ReLU is for positive values anyway; gates
    (sigmoid, softmax) stay as they are.
    """
    return _Network(module, leave_out, masks, linear=True).flow(input_shape)


def synflow_masks(
    module: nn.Module,
    sparsity: float,
    input_shape: Sequence[int],
    *,
    iterations: int = 100,
    leave_out: Collection[str] | str = (),
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks by iterative SynFlow: in round k of n the density is ``(1 - sparsity) ** (k / n)``, scored anew.

    Tanaka et al. 2020, algorithm 1 (n = 100). Exactly ``round(sparsity * weights)`` are pruned in the end.
    ``masks`` are those that the network has: what they prune stays pruned and counts.
    Raises MaskError for fewer than one iteration, a sparsity outside 0 to 1, and what :func:`synflow_scores` refuses.
    """
    if iterations < 1:
        raise MaskError(f"SynFlow needs at least one iteration, not {iterations}")
    total = sum(weight.numel() for weight in prunable_weights(module, leave_out).values())
    wanted = pruned_count(total, sparsity)
    masks = dict(masks or {})
    least = sum(int((~mask).sum()) for mask in masks.values())
    if least > wanted:
        raise MaskError(f"{least:,} weights are pruned already, more than the {wanted:,} of {sparsity:g}")
    for done in range(1, iterations + 1):
        scores = synflow_scores(module, input_shape, masks=masks, leave_out=leave_out)
        for name, mask in masks.items():
            scores[name][~mask] = -torch.inf  # pruned stays pruned, also beside scores of 0
        share = 1 - (1 - sparsity) ** (done / iterations)
        masks = masks_from_scores(
            scores, wanted if done == iterations else min(wanted, max(least, round(share * total)))
        )
    return masks


class _Network:
    """A module with stand-ins for its parameters and buffers, so that scoring does not change it."""

    def __init__(
        self,
        module: nn.Module,
        leave_out: Collection[str] | str = (),
        masks: Mapping[str, Tensor] | None = None,
        linear: bool = False,
    ) -> None:
        prunable = prunable_weights(module, leave_out)
        self._module = unwrapped(module)
        self._linear = linear
        self._tensors: dict[str, Tensor] = {}
        raw_of: dict[int, str] = {}  # tied ones come once here, and so they do among the prunable
        for raw, parameter in self._module.named_parameters():
            if parameter.is_meta:
                name = plain_name(raw)
                raise MaskError(f"{name!r} is on the meta device and has no values; load the weights first")
            raw_of[id(parameter)] = raw
            self._tensors[raw] = self._stand_in(parameter).requires_grad_(parameter.is_floating_point())
        #: the names in the module that is called, by plain name, in the network's order
        self._raw = {name: raw_of[id(parameter)] for name, parameter in prunable.items()}
        with torch.no_grad():
            for name, weight in self.weights.items():
                if masks and name in masks:
                    weight.masked_fill_(~masks[name].to(weight.device), 0)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        plain = tensor.detach().clone()
        return plain.abs().double() if self._linear and plain.is_floating_point() else plain

    @property
    def weights(self) -> dict[str, Tensor]:
        """The prunable weights' stand-ins, by plain name in the network's order."""
        return {name: self._tensors[raw] for name, raw in self._raw.items()}

    def gradients(
        self, batches: Sequence[Batch], loss: Loss, along: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The gradient of the mean loss for the prunable weights; with ``along`` the Hessian's product with that."""
        parameters = list(self.weights.values())
        device = parameters[0].device
        sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        samples = 0
        # fused attention has no second derivative
        attention = nullcontext() if along is None else sdpa_kernel(SDPBackend.MATH)
        with torch.enable_grad(), modes(self._module, batch_statistics=True), attention:
            for inputs, targets in batches:
                value = loss(self._call(_moved(inputs, device)), _moved(targets, device))
                if not isinstance(value, Tensor) or value.numel() != 1:
                    raise MaskError("the loss must be one number, a mean over the batch")
                if along is not None:
                    firsts = _grad(value, parameters, create_graph=True)
                    pairs = zip(firsts, along.values(), strict=True)
                    value = torch.stack(
                        [(first * fixed.to(first.dtype)).sum() for first, fixed in pairs]
                    ).sum()
                size = _length(inputs)
                for total, gradient in zip(sums, _grad(value, parameters), strict=True):
                    total += size * gradient.double()
                samples += size
        found = {name: total / samples for name, total in zip(self._raw, sums, strict=True)}
        for name, gradient in found.items():
            if not gradient.isfinite().all():
                raise MaskError(f"the gradient of {name!r} is not finite; nothing can be scored by it")
        return found

    def flow(self, input_shape: Sequence[int]) -> dict[str, Tensor]:
        """SynFlow's scores of the stand-ins as they are now."""
        parameters = list(self.weights.values())
        ones = torch.ones(1, *input_shape, dtype=torch.float64, device=parameters[0].device)
        with torch.enable_grad(), modes(self._module), _Linear():
            outputs = [leaf.sum() for leaf in tensors_in(self._call(ones)) if leaf.is_floating_point()]
            if not outputs:
                raise MaskError("the network's output holds no tensor of floats, so that no flow ends there")
            gradients = _grad(torch.stack(outputs).sum(), parameters)
        scores = {
            name: (gradient * parameter.detach()).abs()
            for name, gradient, parameter in zip(self._raw, gradients, parameters, strict=True)
        }
        for name, score in scores.items():
            if not score.isfinite().all():
                raise MaskError(
                    f"the synaptic flow through {name!r} exceeds float64; the network is too deep for it"
                )
        return scores

    def _call(self, inputs: Any) -> Any:
        buffers = {raw: self._stand_in(buffer) for raw, buffer in self._module.named_buffers()}
        return functional_call(self._module, {**self._tensors, **buffers}, (inputs,))


class _Linear(TorchFunctionMode):
    """Norms without what depends on the data, and activations as what they are at large inputs, the identity.

    All values are positive here, where ReLU is the identity; ReLU6 would end every path at 6.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _IDENTITIES:
            return args[0]
        if func in _NORMS:
            return _scaled(func, **inspect.signature(func).bind(*args, **(kwargs or {})).arguments)
        return func(*args, **(kwargs or {}))


def _scaled(
    norm: Any, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
    running_var: Tensor | None = None, eps: float = 1e-5, **others: Any,
) -> Tensor:  # fmt: skip
    """What a norm does but for subtracting means and dividing by the batch's own deviation."""

    def along_channels(tensor: Tensor) -> Tensor:
        return tensor if norm in _OF_LAST_AXES else tensor.reshape(1, -1, *(1 for _ in input.shape[2:]))

    if norm is F.batch_norm and running_var is not None:
        input = input * along_channels((running_var + eps).rsqrt())
    if weight is not None:
        input = input * along_channels(weight)
    return input if bias is None else input + along_channels(bias)


_OF_LAST_AXES = (F.layer_norm, F.rms_norm)
_NORMS = (*_OF_LAST_AXES, F.batch_norm, F.instance_norm, F.group_norm)
_IDENTITIES = (
    *(F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.prelu),
    *(F.elu, F.elu_, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus),
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
)


@contextmanager
def modes(module: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode, but for norms that are to use the batch's statistics; all modes come back."""
    before = [(layer, layer.training) for layer in module.modules()]
    try:
        for layer, _ in before:
            layer.training = batch_statistics and isinstance(layer, _NormBase)
        yield
    finally:
        for layer, training in before:
            layer.training = training


def _grad(value: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """Gradients, zero for what the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return torch.autograd.grad(value, parameters, create_graph=create_graph, materialize_grads=True)


def _listed(batches: Iterable[Batch]) -> list[Batch]:
    listed = list(batches)
    if not listed:
        raise MaskError("there are no batches to score with; give at least one (inputs, targets)")
    return listed


def _length(inputs: Any) -> int:
    """Samples of a batch; 1 where that is not known."""
    return len(inputs) if isinstance(inputs, Tensor) and inputs.ndim else 1


def _moved(item: Any, device: torch.device) -> Any:
    return item.to(device) if isinstance(item, Tensor) else item
