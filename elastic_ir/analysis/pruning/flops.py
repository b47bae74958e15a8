"""What training costs: floating-point operations of each method, from those of one forward pass through each layer.

All follow the counting of the RigL paper (Evci et al. 2020, appendix H), which section 4.5 of the elastic ticket paper
takes over: a layer's operations shrink with the density of its mask; a backward pass costs two forward ones, one for
the gradients of activations and one for those of weights; norms, activations and the optimizer's own work do not
count. With f_S a forward pass of the sparse network and f_D of the dense one, both for one sample:

====================  =======================================================
training              operations for one sample of one step
====================  =======================================================
dense                 3 f_D
fixed masks           3 f_S
RigL                  (3 f_S interval + 2 f_S + f_D) / (interval + 1)
DPF                   f_S + 2 f_D
====================  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from elastic_ir.analysis.operations import ForwardCost
from elastic_ir.analysis.pruning.scores import modes
from elastic_ir.ir.example_inputs import map_tensors
from elastic_ir.tensors.torch_bridge import unwrapped
from elastic_ir.tickets.masked import plain_name


def forward_cost(module: nn.Module, *inputs: Any, **options: Any) -> ForwardCost:
    """Count a forward pass in evaluation mode; give inputs of one sample for operations per sample.

    Operations are those of ``torch.utils.flop_counter`` (two for each multiplication with addition), layer by layer.
    Nothing is computed: only shapes are run, on fake tensors. Fused attention is counted as the products that it
    stands for.
    """
    network = unwrapped(module)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = dict[str, Tensor]([*network.named_parameters(), *network.named_buffers()])
    stand_ins: dict[str, Tensor] = {
        name: fakes.from_tensor(tensor.detach()) for name, tensor in tensors.items()
    }
    parameters = {name: plain_name(name) for name, _ in network.named_parameters()}
    counter = _Counter({_storage(stand_ins[raw]): plain for raw, plain in parameters.items()})
    arguments, keywords = map_tensors((inputs, options), fakes.from_tensor)
    fast = torch.backends.mha.get_fastpath_enabled()
    # the fast path is one opaque operator, which the registry does not count
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            modes(network),
            sdpa_kernel(SDPBackend.MATH),
            fakes,
            counter,
        ):
            functional_call(network, stand_ins, arguments, keywords)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return ForwardCost(counter.weights, counter.rest)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operations by the weight that they multiply with, which is known by its storage: views share it."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names
        self.weights: dict[str, int] = {}
        self.rest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            return result
        flops = int(count(*args, **(kwargs or {}), out_val=result))
        # the bias of an addmm is not a factor
        factors = (_storage(item) for item in args if isinstance(item, Tensor) and item.ndim > 1)
        name = next((self._names[factor] for factor in factors if factor in self._names), None)
        if name is None:
            self.rest += flops
        else:
            self.weights[name] = self.weights.get(name, 0) + flops
        return result


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def fixed_step(f_sparse: float) -> float:
    """Training under masks that do not move (tickets, IMP's levels, SNIP, GraSP, SynFlow, SET between updates)."""
    return 3 * f_sparse


def rigl_step(f_sparse: float, f_dense: float, interval: int = 100) -> float:
    """RigL, averaged over an interval: so many steps under fixed masks and one that needs the dense gradient.

    That one passes forward and back through the sparse network (2 f_S) and takes the gradient of every weight (f_D).
    """
    return (3 * f_sparse * interval + 2 * f_sparse + f_dense) / (interval + 1)


def dpf_step(f_sparse: float, f_dense: float, *, sparse_activations: bool = False) -> float:
    """DPF: forward through the pruned network, gradients of all weights, also of those that are zero.

    The elastic ticket paper counts both halves of the backward pass as dense: its total of 1.49 billion for ten
    trainings comes out so (see the tests). ``sparse_activations=True`` counts the gradients of activations as sparse,
    which the pruned weights allow, as the RigL paper does for the similar SNFS: ``2 f_S + f_D``.
    """
    return 2 * f_sparse + f_dense if sparse_activations else f_sparse + 2 * f_dense


#: Forward passes that scoring weights costs for each sample, by method.
SCORING = {
    "snip": 3,  # one gradient of the dense network
    "hybrid": 3,  # by SNIP
    # a gradient (3), one that can be differentiated (3), and its derivative (6), which takes two products for each of
    # the three that a layer's gradient is made of
    "grasp": 12,
    "synflow": 3,  # a sample is the one input of a round; counted as dense
}


def scoring_cost(method: str, f_dense: float, samples: int) -> float:
    """What it costs to score the weights of the dense network on so many samples; 0 for methods without scores."""
    return SCORING.get(method, 0.0) * f_dense * samples


def gradinit_cost(f_sparse: float, samples: int) -> float:
    """GradInit's search for scales, for the samples that its steps' batches have in all; an upper bound.

    Each step takes a gradient that can be differentiated (3) and the derivative of its norm (6); those that look ahead
    instead take a second gradient (3). Which ones do depends on the data.
    """
    return 9 * f_sparse * samples
