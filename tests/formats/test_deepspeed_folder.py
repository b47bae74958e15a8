"""Folders of DeepSpeed are recognised, and what there is to do with them is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import elastic_ir as eir
from elastic_ir.errors import EmitError, SourceError
from tests.checkpoints.accelerate_folders import save_plain
from tests.checkpoints.dcp_folders import Net, step, trained


def save_deepspeed(folder: Path, tag: str, stage: int) -> Path:
    """A checkpoint as ``save_checkpoint`` of one rank leaves it, without the tensors' values."""
    inside = folder / tag
    inside.mkdir(parents=True)
    weights = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
    net = Net(4)
    optimizer = torch.optim.AdamW(net.parameters())
    step(net, optimizer)
    own = {"optimizer": optimizer.state_dict() if not stage else None, "param_shapes": None}
    torch.save({"module": net.state_dict(), **own, "global_steps": 7}, inside / weights)
    if stage:
        torch.save({"optimizer_state_dict": {}}, inside / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text(tag)
    (folder / "zero_to_fp32.py").write_text("raise SystemExit\n")
    return folder


@pytest.mark.parametrize("given", ["whole", "inside"])
@pytest.mark.parametrize("stage", [2, 3])
def test_folders_of_ranks_are_refused_with_the_way_out(stage: int, given: str, tmp_path: Path) -> None:
    folder = save_deepspeed(tmp_path / "run", "global_step100", stage)
    program = (
        f"`python -m deepspeed.utils.zero_to_fp32 {folder} OUT -t global_step100`) and give what that writes"
    )
    with pytest.raises(SourceError, match="what the ranks of a DeepSpeed training have saved") as caught:
        eir.load(folder if given == "whole" else folder / "global_step100")
    assert program in str(caught.value)
    file = folder / "global_step100" / "mp_rank_00_model_states.pt"
    assert (f"or give {file} with --key module" in str(caught.value)) is (stage < 3)
    for piece in (folder / "global_step100").glob("*zero*"):
        with pytest.raises(SourceError, match="each its part; put them together by"):
            eir.load(piece, key="module")
    if stage < 3:
        assert len(eir.load(file, key="module").stages[0]) == 4


def test_without_zero_one_file_is_all(tmp_path: Path) -> None:
    folder = save_deepspeed(tmp_path / "run", "global_step100", 0)
    file = folder / "global_step100" / "mp_rank_00_model_states.pt"
    with pytest.raises(SourceError, match=f"all of it in one file; give {file}, with --with-optimizer"):
        eir.load(folder)
    before = eir.load(file)
    eir.save_training(eir.stretch(before, to_units=6), tmp_path / "deep.pt", file, before)
    made = torch.load(tmp_path / "deep.pt", weights_only=True)
    assert len(made["optimizer"]["state"]) == len(made["module"]) == len(Net(6).state_dict())


def test_the_latest_is_meant(tmp_path: Path) -> None:
    for number in (200, 100):  # the one that was written last need not be the last by name
        save_deepspeed(tmp_path, f"global_step{number}", 2)
    with pytest.raises(SourceError, match=r"zero_to_fp32.py .*; or give \S+/global_step100/mp_rank_00"):
        eir.load(tmp_path)


def test_a_model_without_its_weights_says_so_too(tmp_path: Path) -> None:
    """As a Trainer leaves it."""
    save_deepspeed(tmp_path, "global_step100", 3)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 4}')
    with pytest.raises(SourceError, match="what the ranks of a DeepSpeed training have saved"):
        eir.load(tmp_path)


def test_pieces_beside_a_network_are_not_copied(tmp_path: Path) -> None:
    """What ``zero_to_fp32.py`` wrote lies beside the ranks' files: weights alone can follow."""
    net, optimizer = trained()
    source = save_plain(tmp_path / "source", net, optimizer)
    (source / "optimizer.bin").unlink()
    save_deepspeed(source, "pytorch_model", 3)
    deep = eir.stretch(eir.load(source), to_units=6)
    with pytest.raises(
        EmitError, match=r"DeepSpeed's ranks have saved \(.*\), which cannot follow; write the"
    ):
        eir.save(deep, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    eir.save(deep, tmp_path / "deep.safetensors")
