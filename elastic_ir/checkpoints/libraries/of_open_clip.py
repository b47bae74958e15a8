"""OpenCLIP: ``open_clip_config.json`` holds the arguments of a class of two towers, or of three with a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_ir.checkpoints.libraries.library import Config, Library
from elastic_ir.errors import SourceError
from elastic_ir.extras import import_extra
from elastic_ir.safety import registered
from elastic_ir.safety.config_values import plain_values

_MODEL = "model_cfg"
#: Towers that another library makes, by the entry that names them, and what would have it fetch their weights.
_PRETRAINED = {"timm_model_name": "timm_model_pretrained", "hf_model_name": "hf_model_pretrained"}


class OpenClip(Library):
    """Models of OpenCLIP."""

    name = "open_clip"
    extra = "open-clip"
    imports = "open_clip"
    code = "open_clip."
    count = "model_cfg.text_cfg.layers"
    file = "open_clip_config.json"
    sharded = False

    def recognises(self, config: Config) -> bool:
        return isinstance(config.get(_MODEL), Mapping) and "model_type" not in config

    def network(self, config: Config, where: str, device: str = "meta") -> Any:
        open_clip = import_extra("open_clip", self.extra, where)
        values = plain_values(_without_tokenizer(config[_MODEL]), where)
        towers = [table for table in values.values() if isinstance(table, dict)]
        for table in towers:
            table.update({switch: False for name, switch in _PRETRAINED.items() if name in table})
        custom = values.pop("custom_text", False) or any("hf_model_name" in table for table in towers)
        kind = open_clip.CLIP
        if custom:
            kind = open_clip.CoCa if "multimodal_cfg" in values else open_clip.CustomTextCLIP
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= values.keys():
            raise SourceError(f"{where} has no embed_dim, vision_cfg and text_cfg in its model_cfg")
        return registered.constructed(lambda: kind(**values), where, f"the class {kind.__name__}", device)


def _without_tokenizer(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without what makes texts into numbers, which no network is built of, and which is named by its hub."""
    return {
        name: _without_tokenizer(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if "tokenizer" not in name
    }
