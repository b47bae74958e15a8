"""Prefixes of PEFT: keys and values of tokens that nobody wrote, for every layer, in one tensor. No torch here.

A row of it is a token's: for each layer the key and the value that its attention has in front of those of the text. So
a layer's are a run of columns, which a copy of it takes along.
"""

from __future__ import annotations

from elastic_ir.checkpoints.adapters.change import Change
from elastic_ir.checkpoints.adapters.read import Adapter
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG
from elastic_ir.tensors.gathered import Gathering

#: The sorts of adapters that hold them, and the name of their tensor.
KINDS = ("PREFIX_TUNING", "CARTRIDGE")
TENSOR = "prompt_embeddings"


def prefix_gathering(adapter: Adapter, change: Change, where: str) -> Gathering:
    """Which columns of the tensor the changed base's layers take.

    Raises SourceError where the tensor does not hold a prefix for each layer, PlanError where it is not known which
    layers those are, or some are of another network.
    """
    count, data = adapter.config.get("num_layers"), adapter.tensors.get(TENSOR)
    refusal = f"{where} is an adapter of the sort {adapter.kind} and cannot follow"
    if adapter.config.get("num_transformer_submodules") not in (None, 1):
        raise PlanError(f"{refusal}: its base has an encoder and a decoder, which share the prefixes")
    stacks = [stack for stack in change.stacks if stack.before == count]
    places = {tuple(stack.places()) for stack in stacks}
    if type(count) is not int or count < 1 or len(places) != 1:
        raise PlanError(
            f"{refusal}: {ADAPTER_CONFIG}'s num_layers is {count}, which counts {'several' if places else 'none'} of "
            "the stacks that have changed"
        )
    if data is None or len(data.shape) != 2 or data.shape[1] % (2 * count):
        shape = list(data.shape) if data is not None else "missing"
        raise SourceError(
            f"{where} is damaged: {TENSOR} is {shape}, and {count} layers take a key and a value each of every row"
        )
    if any(source for source, _ in stacks[0].places()):
        raise PlanError(f"{refusal}: layers of another network have no prefix in it")
    return Gathering(1, stacks[0].order, data.shape[1] // count)
