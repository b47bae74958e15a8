"""transformers: the class of ``architectures``, or the plain model of a ``model_type``, and its own loading.

Names that are missing, unexpected or of another shape are found by transformers' loading itself, which knows what it
renames, fuses, ties and leaves out; it is given tensors without values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elastic_ir.checkpoints.libraries.library import Config, Library, Report, Shape, not_matched
from elastic_ir.errors import SourceError
from elastic_ir.safety import registered

if TYPE_CHECKING:
    import torch

#: Entries that say how weights are packed or which code computes with them, and do not affect names and shapes.
_LEFT_OUT = re.compile(
    r"(quantization|compression)_config|\w*_implementation\w*|transformers_weights|(torch_)?dtype"
)


class Transformers(Library):
    """Models of transformers."""

    name = "transformers"
    extra = "transformers"
    imports = "transformers.modeling_utils"
    code = "transformers.models."
    count = "num_hidden_layers"

    def recognises(self, config: Config) -> bool:
        return True

    def network(self, config: Config, where: str, device: str = "meta") -> Any:
        kind = _class_of(config, where)
        settings = registered.configuration(kind.config_class, _structural(config), where)
        return registered.network(kind, settings, where, device=device)

    def described(self, config: Config, where: str, device: str = "meta") -> Any:
        return registered.network_of(config, where, device)

    def loading(self, module: Any, tensors: Mapping[str, Shape]) -> Report:
        import torch

        state = {name: torch.empty(tuple(shape), device="meta") for name, shape in tensors.items()}
        info = _loaded(module, state)
        missing = not_matched(info["missing"], module._keys_to_ignore_on_load_missing)
        rules = [*(module._keys_to_ignore_on_load_unexpected or ()), *_old_buffers(module)]
        unexpected = not_matched(info["unexpected"], rules)
        silent = {
            "missing": sorted(info["missing"] - missing),
            "unexpected": sorted(info["unexpected"] - unexpected),
        }
        return {
            "missing": sorted(missing), "unexpected": sorted(unexpected), "silent": silent,
            "shapes": sorted(info["shapes"]), "failed": sorted(info["failed"]),
        }  # fmt: skip

    def filled(self, config: Config, state: Mapping[str, torch.Tensor], where: str) -> torch.nn.Module:
        kind = registered.model_class(config, where)
        settings = registered.configuration(kind.config_class, config, where)
        return registered.filled(kind, settings, dict(state), where)


def _class_of(config: Config, where: str) -> Any:
    try:
        return registered.model_class(config, where)
    except SourceError:
        try:
            import transformers

            kind = transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[config["model_type"]]]
        except (ImportError, RuntimeError, KeyError, TypeError):
            kind = None
        if not registered.is_model(kind):
            raise
        return kind


def _structural(table: Any) -> Any:
    if isinstance(table, list):
        return [_structural(item) for item in table]
    if not isinstance(table, Mapping):
        return table
    return {name: _structural(value) for name, value in table.items() if not _LEFT_OUT.fullmatch(name)}


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


def _old_buffers(module: Any) -> list[str]:
    """Buffers that old checkpoints hold for each layer, and transformers leaves out without a word."""
    held = {name.rpartition(".")[2] for name, _ in module.named_buffers()}
    rules = {"inv_freq": r"rotary_emb\.inv_freq", "position_ids": r"(^|\.)position_ids$"}
    return [rule for name, rule in rules.items() if name in held]
