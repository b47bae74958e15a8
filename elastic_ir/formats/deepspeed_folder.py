"""Folders of DeepSpeed: what each rank has saved of a training, which DeepSpeed's own program puts together.

A folder inside, named in the file ``latest``, has for each rank a file of weights and one of the optimizer. No torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from elastic_ir.errors import SourceError

_PIECE = re.compile(r".*(model|optim)_states\.pt")
#: All weights, or one rank's of tensor parallelism; and what ZeRO cuts in parts, in its third stage the weights too.
_WEIGHTS = re.compile(r"mp_rank_\d+_model_states\.pt")
_CUT = re.compile(r".*zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt")
_LATEST = "latest"


def pieces_in(folder: Path) -> list[Path]:
    """The files of ranks in a folder, or in the one inside that is named as the latest, or comes last."""
    own = _pieces(folder)
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    latest = folder / _LATEST
    if latest.is_file() and latest.stat().st_size < 256:
        tag = latest.read_text("utf-8", "replace").strip()
        inside.sort(key=lambda path: path.name == tag)
    return own or next((found for path in reversed(inside) if (found := _pieces(path))), [])


def _pieces(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*_states.pt") if _PIECE.fullmatch(path.name))


def refuse_piece(path: Path) -> None:
    """SourceError for a file with one rank's part of weights or of an optimizer, by its name."""
    if _CUT.fullmatch(path.name):
        refuse_pieces(path.parent)


def refuse_pieces(folder: Path) -> None:
    """SourceError for a folder of ranks' files, with what there is to do."""
    pieces = pieces_in(folder)
    if not pieces:
        return
    weights = [path for path in pieces if _WEIGHTS.fullmatch(path.name)]
    cut = any(_CUT.fullmatch(path.name) and "_model_" in path.name for path in pieces)
    whole = len(weights) == 1 and not cut
    home, tag = pieces[0].parent.parent, pieces[0].parent.name
    if whole and pieces == weights:  # without ZeRO one rank saves all of it
        raise SourceError(
            f"{folder} holds what a DeepSpeed training without ZeRO has saved, all of it in one file; give "
            f"{weights[0]}, with --with-optimizer for the optimizer's state too"
        )
    ways = [
        "put them together by DeepSpeed's zero_to_fp32.py "
        f"(`python -m deepspeed.utils.zero_to_fp32 {home} OUT -t {tag}`) and give what that writes, "
        "OUT/pytorch_model.bin, or OUT with the model's config.json in it"
    ]
    if whole:
        ways.append(f"or give {weights[0]} with --key module, the weights without their optimizer")
    raise SourceError(
        f"{folder} holds what the ranks of a DeepSpeed training have saved ({pieces[0].name}), each its part; "
        f"{'; '.join(ways)}"
    )
