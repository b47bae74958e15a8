"""What stands outside of a checkpoint's layers: before them (embeddings) or behind them (the final norm, heads).

Files come sorted by name, so order shows nothing; only the words in the names may. It is asked only where
the two sides are given different sources or factors.
"""

from __future__ import annotations

import re

_BEHIND = re.compile(
    r"(.*_)?(lm_head|head|score|classifier|cls|pooler|embed_out|logits?|outputs?|predictions?|final_.*|ln_f|norm_f|norm"
    r"|layer_?norm|post_layernorm|final_logits_bias)(_.*)?",
    re.IGNORECASE,
)
_BEFORE = re.compile(r".*emb.*|wte|wpe|shared|.*position.*|patch.*|pre_layrnorm|pre_layernorm", re.IGNORECASE)


def stands_behind(name: str) -> bool | None:
    """Whether a tensor outside of the layers stands behind them; None where its name does not show it."""
    for part in name.split(".")[:-1] or [name]:
        if part == "embed_out":
            return True
        if _BEFORE.fullmatch(part):
            return False
        if _BEHIND.fullmatch(part):
            return True
    return None
