"""Where the configurations of two checkpoints differ in what a layer computes: reported, since shapes do not show it.

A layer of another model runs under the first one's configuration. Which entries matter to a layer is not looked up in
a table: what concerns the vocabulary, the tokens, the depth or of where the checkpoint came from is left out, and all
else that differs is reported. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from elastic_ir.ir.numbering import COUNT

#: Entries that do not affect what a layer computes.
_OTHER = re.compile(
    r"_.*|architectures|model_type|transformers_version|(torch_)?dtype|use_cache|.*token.*|vocab.*|.*_vocab_size"
    r"|tie_.*|id2label|label2id|num_labels|problem_type|task_specific_params|auto_map|finetuning_task|tokenizer_class"
    r"|return_dict|output_.*|initializer_.*|.*dropout.*|.*_pdrop|.*position_embeddings|n_positions|pretraining_tp"
    r"|license|name|language"
)


def differences(config: dict[str, Any], other: dict[str, Any], name: str) -> list[str]:
    """Where another configuration differs in what its layers compute, a sentence each."""
    found = []
    mine, theirs = dict(_entries(config)), dict(_entries(other))
    for key in sorted({**mine, **theirs}):
        if key not in theirs:
            theirs_text = "has none"
        elif key not in mine:
            theirs_text = f"has {_text(theirs[key])}, and the first source has none"
        elif mine[key] != theirs[key]:
            theirs_text = f"has {_text(theirs[key])}"
        else:
            continue
        mine_text = (
            f"config.json has {key} = {_text(mine[key])}, {name!r}" if key in mine else f"{key}: {name!r}"
        )
        found.append(f"{mine_text} {theirs_text}")
    return found


def _entries(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """All entries that concern layers, with their paths; those of layers one by one are lists, and go with them."""
    for key, value in config.items():
        if _OTHER.fullmatch(key) or (COUNT.fullmatch(key) and isinstance(value, int)):
            continue
        if isinstance(value, dict):
            yield from _entries(value, f"{path}{key}.")
        elif not isinstance(value, list):
            yield f"{path}{key}", value


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
