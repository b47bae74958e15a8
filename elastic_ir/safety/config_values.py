"""Which values of a configuration may reach a constructor: none that names a file, a host or a download. No torch here.

A configuration in a file is anybody's text. Some classes of transformers hand parts of it to functions that open what
a path names (``model_args`` of ``TimmWrapperModel``) or download it (``backbone``). What only says where a model came
from (``_name_or_path``) is left out; anything else that leads out of the file is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.safety.limits import BLOCKS

#: Notes that say where a model came from, or name code beside it. Nothing of a network's structure is in them.
NOTES = frozenset(
    {
        "_name_or_path", "name_or_path", "_commit_hash", "auto_map", "custom_pipelines", "custom_object",
        "pretrained_cfg", "task_specific_params", "trust_remote_code", "_attn_implementation_autoset",
    }
)  # fmt: skip
#: Switches for loading weights from elsewhere; many published configurations have them on. The weights are the file's.
_SWITCHES = frozenset({"use_pretrained_backbone", "use_pretrained", "backbone_pretrained"})
#: Entries whose text is for people, or for tokenizers: a label may hold slashes.
_TEXTS = re.compile(
    r"label(_names|s)?$|vocab|tokens?$|prompt|template|lang(uage)?s?$|title|(^|_)sep$|prefix$"
)
#: Tables whose keys are anybody's texts too.
_TEXT_TABLES = frozenset({"id2label", "label2id", "vocabulary_map"})
#: Entries that name a place by their own name.
_PLACES = re.compile(
    r"(^|_)(paths?|files?|filename|url|uri|dir|folder|ckpt|checkpoint|repo|repo_id|hub_id|revision|source)$"
)
#: Entries that take a model's or a kernel's name on the hub, where another name would be a known one.
_NAMED_ELSEWHERE = re.compile(r"backbone|architecture|implementation|kernel|tower|(^|_)(name|id|model)$")
#: Entries that count what a constructor makes one by one.
_COUNTS = re.compile(
    r"(^|_)n?(layers?|blocks?|depths?|stages?|experts?|codebooks?|quantizers?)(_num|_count)?$"
)
#: Experts may be rows of one table (Doge has 16,384); what is made one by one is counted while it is made.
_EXPERTS = 10 * BLOCKS
_SCHEME = re.compile(
    r"^\s*([a-z][a-z0-9+.-]*://|(file|https?|ftp|s3|gs|hf|data|hf[-_]hub|local[-_]dir):)", re.I
)
_PATH = re.compile(r"^\s*(/+[\w.]|~[\w/]|\.{1,2}[/\\]|\\\\|[a-z]:[/\\])|(^|[/\\])\.\.([/\\]|$)", re.I)
_WEIGHTS = re.compile(
    r"\.(pt|pth|pkl|pickle|bin|ckpt|safetensors|npz?|h5|hdf5|msgpack|onnx|pb|gguf|tar|gz|zip|joblib|so|py|pyc)\s*$",
    re.I,
)


def plain_values(config: Mapping[str, Any], where: str = "the configuration") -> dict[str, Any]:
    """A copy of a configuration that holds nothing but a network's own values, at any depth.

    Notes of origin are left out, switches that ask for downloads are off. Raises SourceError, which names the entry,
    for a path, a URL, and a name on a hub.
    """
    try:
        return {str(key): value for key, value in _mapping(config, where, "")}
    except RecursionError as error:
        raise SourceError(f"{where} is nested too deeply") from error


def _mapping(config: Mapping[str, Any], where: str, path: str, table: str = "") -> list[tuple[Any, Any]]:
    backbone = config.get("backbone")
    if isinstance(backbone, str) and (config.get("use_timm_backbone") is False or os.path.exists(backbone)):
        # a name of timm's otherwise; this one would be looked for as a folder, then on a hub
        raise SourceError(
            f"{where} takes a backbone from elsewhere ({f'{path}.backbone'.lstrip('.')}: {backbone[:100]!r})"
        )
    return [
        (key, _plain(value, where, f"{path}.{key}".lstrip("."), table or str(key)))
        for key, value in config.items()
        if key not in NOTES
    ]


def _plain(value: Any, where: str, path: str, key: str) -> Any:
    if isinstance(value, Mapping):
        return dict(_mapping(value, where, path, key if key in _TEXT_TABLES else ""))
    if isinstance(value, list | tuple):
        return [_plain(part, where, path, key) for part in value]
    if key in _SWITCHES:
        return False
    most = _EXPERTS if "expert" in key else BLOCKS
    if isinstance(value, int) and value > most and _COUNTS.search(key):
        raise SourceError(f"{where} asks for {value} of {path}; no network has more than {most}")
    if key == "pretrained" and value:
        raise SourceError(f"{where} asks for other weights than the file's ({path}: {value!r})")
    if isinstance(value, str) and (what := _leads_out(key.lower(), value)):
        raise SourceError(f"{where} holds {what} ({path}: {value[:100]!r}), which no constructor is given")
    return value


def _leads_out(key: str, text: str) -> str | None:
    """What a text names outside of the file, in words."""
    if not text.strip():
        return None
    if _PLACES.search(key):
        return "a path"
    if _TEXTS.search(key):
        return None
    if _SCHEME.search(text):
        return "a URL"
    if len(text) > 1 and (_PATH.search(text) or _WEIGHTS.search(text)):
        return "a path"
    if _NAMED_ELSEWHERE.search(key) and "/" in text:
        return "a name on a hub"
    return None
