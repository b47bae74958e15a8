"""Every command on a training checkpoint of torch.distributed, as a user types it, and what it does with odd ones."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch.distributed.checkpoint.metadata import MetadataIndex

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError
from elastic_ir.formats.dcp.metadata import Entry, Place, metadata_bytes, read_metadata
from tests.checkpoints.dcp_folders import Net, loaded, metadata_of, save, save_sharded, trained


def call(*arguments: object) -> Result:
    return CliRunner().invoke(elastic_ir, list(map(str, arguments)))


def run(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def with_average(folder: Path) -> Path:
    """A checkpoint of two networks, of which a key chooses."""
    return save(folder, ranks=2, extra={"ema": {n: t / 2 for n, t in trained()[0].state_dict().items()}})


@pytest.mark.slow
def test_what_a_key_chose_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result needs no option again: it is inspected, verified, changed further and undone."""
    monkeypatch.chdir(tmp_path)
    source = with_average(tmp_path / "source")
    assert "say which one is meant" in call("inspect", "source").output
    run("stretch", "source", "--key", "model", "--to-units", 6, "-o", "out")
    assert json.loads(Path("out/elastic_ir.json").read_text())["history"][0]["keys"] == ["model"]
    assert "27" in run("inspect", "source", "--key", "ema") and "39 tensors under model" in run(
        "inspect", "out"
    )
    assert "result:     equal" in run("verify", "out")
    run("squeeze", "out", "--to-units", 5, "-o", "shallower")
    assert "result:     equal" in run("verify", "shallower", "--against", "out")
    assert "39 tensors under ema" in run("inspect", "out", "--key", "ema")
    run("undo", "out", "-o", "back")
    assert metadata_of(Path("back")).state_dict_metadata == metadata_of(source).state_dict_metadata
    assert "say which one is meant" in call("inspect", "back").output  # as its source


def test_passes_run_over_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "source", flat=True, ranks=2)
    Path("recipe.yaml").write_text("version: 1\npasses:\n  - stretch: {plan: '0-3,1,2'}\n")
    text = run("apply", "source", "--recipe", "recipe.yaml", "-o", "out")
    assert "following:  optim" in text
    net, _, _ = loaded(Path("out"), 6, flat=True)
    assert torch.equal(
        net.state_dict()["layers.5.up.weight"], trained()[0].state_dict()["layers.2.up.weight"]
    )
    assert "result:     equal" in run("verify", "out", "--against", source)
    assert "--with-optimizer is for training checkpoints of torch.save" in (
        call("apply", "source", "--recipe", "recipe.yaml", "--with-optimizer").output
    )


def test_a_dry_run_shows_the_files_and_refuses_what_would_be_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "source", flat=True, ranks=2)
    text = run("stretch", source, "--to-units", 6, "--dry-run", "-o", tmp_path / "out")
    assert "__0_0.distcp" in text and "(computed)" not in text
    assert "dry run:    would write" in text and "following:  optim" in text
    numbered = {"model": Net(4).state_dict(), "optim": trained()[1].state_dict()}
    save_sharded(numbered, tmp_path / "numbered", 1)
    refused = call("stretch", tmp_path / "numbered", "--to-units", 6, "--dry-run")
    assert refused.exit_code == 1 and "state by numbers" in refused.output
    assert {path.name for path in tmp_path.iterdir()} == {"source", "numbered"}


def test_what_programs_read(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    found = json.loads(run("inspect", source, "--json"))
    assert found["file"]["checkpoint"] == "27 tensors under model, 107 further entries"
    assert found["stages"][0]["blocks"] == 4
    made = json.loads(run("stretch", source, "--to-units", 6, "-o", tmp_path / "out", "--json"))
    assert made["wrote"][0]["path"] == str(tmp_path / "out")
    alike = json.loads(run("diff", source, tmp_path / "out", "--headers", "--json"))
    assert (alike["alike"], len(alike["only_in_b"]), alike["same"]) == (27, 12, False)
    assert alike["lineage"][0]["is_other"]
    values = json.loads(run("diff", source, tmp_path / "out", "--json"))
    assert values["equal_tensors"] == 27
    verified = json.loads(run("verify", tmp_path / "out", "--json"))
    assert verified["equal"] and verified["compared"] == 39
    assert run("stretch", source, "--to-units", 5, "-q", "-o", tmp_path / "quiet") == ""
    wordy = run("stretch", source, "--to-units", 5, "-v", "--force", "-o", tmp_path / "quiet")
    assert re.search(r"writing \S+quiet: \d", wordy)


def test_tensors_of_short_floats_and_uneven_parts(tmp_path: Path) -> None:
    """Rows of 30 over 4 ranks are 8, 8, 8 and 6; types that torch alone computes with are carried and put together."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in Net(4).state_dict().items()}
    state["head.weight"] = state["head.weight"].to(torch.float8_e4m3fn)
    save_sharded({"model": state}, tmp_path / "source", 4)
    run("stretch", tmp_path / "source", "--plan", "0-3,1", "--scale", "down=0.5", "-o", tmp_path / "out")
    run("stretch", tmp_path / "source", "--plan", "0-3,1", "-o", tmp_path / "out.safetensors")
    whole = eir.load(tmp_path / "out.safetensors").state_dict()
    assert whole["head.weight"].dtype == torch.float8_e4m3fn
    made = eir.load(tmp_path / "out").state_dict()
    assert torch.equal(made["emb.weight"], state["emb.weight"])
    assert torch.equal(made["head.weight"].view(torch.uint8), state["head.weight"].view(torch.uint8))
    assert torch.equal(made["layers.4.down.weight"], state["layers.1.down.weight"] / 2)
    assert torch.equal(whole["layers.4.down.weight"], state["layers.1.down.weight"])


def test_files_of_further_ranks_are_left_out_and_named(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    (source / "__2_0.distcp").write_bytes(b"of another save")
    left = "left out:   __2_0.distcp, of which .metadata does not know"
    assert left in run("inspect", source)
    assert left in run("stretch", source, "--to-units", 6, "-o", tmp_path / "out")
    assert not (tmp_path / "out" / "__2_0.distcp").exists()


def test_places_that_overlap_or_are_too_short(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    metadata: Any = metadata_of(source)
    places = {(index.fqn, index.offset): info for index, info in metadata.storage_data.items()}
    one = places["model.emb.weight", torch.Size([0, 0])]
    one.offset += 64
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        SourceError, match=r"the places of 'model\.\S+' and \S+ in __0_0\.distcp overlap at byte \d+"
    ):
        eir.load(source)
    one.offset -= 64
    one.length = 100
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        SourceError, match=r"float32 \[15, 8\] of 'model.emb.weight' takes 480 bytes, .* has 100"
    ):
        eir.load(source)


def test_empty_parts_of_several_ranks_are_one(tmp_path: Path) -> None:
    """A rank without rows of a tensor says so, at the tensor's end, as every other such rank does."""
    source = save(tmp_path / "source", ranks=2)
    metadata: Any = metadata_of(source)
    held = metadata.state_dict_metadata["model.emb.weight"]
    empty = type(held.chunks[0])(torch.Size([30, 0]), torch.Size([0, 8]))
    held.chunks += [empty, empty]
    place = next(iter(metadata.storage_data.values()))
    index = MetadataIndex("model.emb.weight", torch.Size([30, 0]))
    end = (source / place.relative_path).stat().st_size
    metadata.storage_data[index] = type(place)(place.relative_path, end, 0)
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    run("stretch", source, "--plan", "0-3,1", "-o", tmp_path / "out")
    net, _, _ = loaded(tmp_path / "out", 5)
    assert torch.equal(net.state_dict()["emb.weight"], trained()[0].state_dict()["emb.weight"])


def test_what_is_computed_lies_in_the_folder_of_what_it_stands_for(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    metadata = read_metadata(source)
    (source / "sub").mkdir()
    entries = []
    for entry in metadata.entries:
        boxes = [replace(box, place=replace(box.place, file=f"sub/{box.place.file}")) for box in entry.boxes]
        entries.append(replace(entry, boxes=tuple(boxes)))
    for path in list(source.glob("*.distcp")):
        path.rename(source / "sub" / path.name)
    (source / ".metadata").write_bytes(metadata_bytes(replace(metadata, entries=tuple(entries))))
    run("stretch", source, "--plan", "0-3,1", "--scale", "up.weight=0.5", "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "sub").iterdir()} == {
        "__0_0.distcp", "__1_0.distcp", "__0_1.distcp", "__0_2.distcp", "__0_3.distcp",
    }  # fmt: skip
    net, _, _ = loaded(tmp_path / "out", 5)
    before = trained()[0].state_dict()
    assert torch.equal(net.state_dict()["layers.4.up.weight"], before["layers.1.up.weight"] / 2)
    run("verify", tmp_path / "out")


def test_a_file_that_is_not_there_is_noticed_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "source", ranks=2)
    monkeypatch.setattr(
        "elastic_ir.checkpoints.dcp.write.Place", lambda file, *rest: Place(f"lost/{file}", *rest)
    )
    out = tmp_path / "out"
    result = call("stretch", source, "--plan", "0-3,1", "--scale", "up.weight=0.5", "-o", out)
    assert result.exit_code == 1 and "lacks lost/__0_1.distcp" in result.output
    assert not out.exists()


def test_an_empty_tensor_may_lie_nowhere(tmp_path: Path) -> None:
    """What has no elements has no parts where no rank has any of it; scaled it has none either."""
    save_sharded({"model": Net(4).state_dict()}, tmp_path / "source", 2)
    metadata = read_metadata(tmp_path / "source")
    names = [f"layers.{number}.bank" for number in range(4)]
    empty = [Entry(f"model.{name}", ("model", name), "float32", (0, 8), ()) for name in names]
    metadata = replace(metadata, entries=(*metadata.entries, *empty))
    (tmp_path / "source" / ".metadata").write_bytes(metadata_bytes(metadata))
    out = tmp_path / "out"
    run("stretch", tmp_path / "source", "--plan", "0-3,1", "--scale", "bank=0.5", "-o", out)
    run("verify", out)
    assert eir.load(out).state_dict()["layers.4.bank"].shape == (0, 8)
