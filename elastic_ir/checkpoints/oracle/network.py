"""The network that a configuration builds, and what transformers would report if it loaded a checkpoint into it.

The class that a configuration names is built on the meta device, so no weight is made or read, and given tensors of
the checkpoint's names and shapes by transformers' own loading, which knows what it renames, fuses, ties and leaves out:
names that are missing, unexpected, of another shape. The class is transformers' own, never code beside a checkpoint,
see :mod:`elastic_ir.safety.registered`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import SourceError
from elastic_ir.formats.model_folder import CONFIG
from elastic_ir.ir.numbering import DIGITS
from elastic_ir.safety import registered

Shape = Sequence[int]

#: Entries that say how weights are packed or which code computes with them, and do not affect names and shapes.
_LEFT_OUT = re.compile(
    r"(quantization|compression)_config|\w*_implementation\w*|transformers_weights|(torch_)?dtype"
)


def class_of(config: Mapping[str, Any]) -> Any:
    """The class of transformers that a configuration names, else the plain model of its ``model_type``.

    Raises SourceError where transformers has none, or is not there.
    """
    try:
        return registered.model_class(config, CONFIG)
    except SourceError:
        try:
            import transformers

            kind = transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[config["model_type"]]]
        except (ImportError, RuntimeError, KeyError, TypeError):
            kind = None
        if not registered.is_model(kind):
            raise
        return kind


def built(kind: Any, config: Mapping[str, Any]) -> Any:
    """A network without weights, as a configuration has it. Raises SourceError where the class does not take it."""
    settings = registered.configuration(kind.config_class, _structural(config), CONFIG)
    return registered.network(kind, settings, CONFIG)


def _structural(table: Any) -> Any:
    if isinstance(table, list):
        return [_structural(item) for item in table]
    if not isinstance(table, Mapping):
        return table
    return {name: _structural(value) for name, value in table.items() if not _LEFT_OUT.fullmatch(name)}


def loading(module: Any, tensors: Mapping[str, Shape]) -> dict[str, Any]:
    """What loading tensors of these shapes into a module on the meta device would report.

    ``missing`` and ``unexpected`` are names as transformers reports them, ``silent`` has those of both that it does not
    report; ``shapes`` has name, held and expected shape; ``failed`` what could not be converted.
    """
    import torch

    state = {name: torch.empty(tuple(shape), device="meta") for name, shape in tensors.items()}
    info = _loaded(module, state)
    missing = _not_ignored(info["missing"], module._keys_to_ignore_on_load_missing)
    rules = [*(module._keys_to_ignore_on_load_unexpected or ()), *_old_buffers(module)]
    unexpected = _not_ignored(info["unexpected"], rules)
    return {
        "missing": sorted(missing), "unexpected": sorted(unexpected),
        "silent": {"missing": sorted(info["missing"] - missing), "unexpected": sorted(info["unexpected"] - unexpected)},
        "shapes": sorted(info["shapes"]), "failed": sorted(info["failed"]),
    }  # fmt: skip


def lengths(module: Any) -> dict[str, int]:
    """How many numbers stand behind each head of a network's names (``layers.``)."""
    found: dict[str, set[str]] = {}
    for name in module.state_dict():
        for match in re.finditer(rf"(?<![0-9]){DIGITS}(?=\.|$)", name):
            found.setdefault(name[: match.start()], set()).add(match[0])
    return {head: len(numbers) for head, numbers in found.items()}


def head_of(kind: Any, config: Mapping[str, Any], tensors: Mapping[str, Shape], stack: Stack) -> str | None:
    """What stands before the numbers of a stack's modules, where the class calls them otherwise than the checkpoint.

    It shows from what is missed when a layer's tensors are. None where that tells nothing.
    """
    layers = stack.contents(tensors)[:2]
    missed = []
    for layer in layers:
        rest = {name: shape for name, shape in tensors.items() if name not in set(layer.values())}
        missed.append(set(loading(built(kind, config), rest)["missing"]))
    own = (
        [sorted(names - missed[1 - at]) for at, names in enumerate(missed)] if len(missed) == 2 else [[], []]
    )
    for one, two in zip(*own, strict=False):
        first, second = re.split(f"({DIGITS})", one), re.split(f"({DIGITS})", two)
        at = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
        if at % 2:  # the first that differs is a number
            return "".join(first[:at])
    return None


def _loaded(module: Any, state: Mapping[str, Any]) -> dict[str, set[Any]]:
    """By the loading of transformers 5, which returns its result before it drops what a class ignores."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.modeling_utils import LoadStateDictConfig

    renamings: Any = get_model_conversion_mapping(module)
    settings = LoadStateDictConfig(weight_mapping=renamings, device_map={"": "meta"}, dtype=torch.float32)
    info, _ = module._load_pretrained_model(module, dict(state), None, settings)
    module.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    return {
        "missing": set(info.missing_keys),
        "unexpected": set(info.unexpected_keys),
        "shapes": {(name, tuple(held), tuple(wanted)) for name, held, wanted in info.mismatched_keys},
        "failed": set(info.conversion_errors),
    }


def _not_ignored(names: Iterable[str], patterns: Iterable[str] | None) -> set[str]:
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())}


def _old_buffers(module: Any) -> list[str]:
    """Buffers that old checkpoints hold for each layer, and transformers leaves out without a word."""
    held = {name.rpartition(".")[2] for name, _ in module.named_buffers()}
    rules = {"inv_freq": r"rotary_emb\.inv_freq", "position_ids": r"(^|\.)position_ids$"}
    return [rule for name, rule in rules.items() if name in held]
