"""Checkpoints of torch.distributed at another depth: torch restores them strictly, optimizer included; bad ones."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import EmitError, OutputError, SourceError, UntrustedError
from elastic_ir.formats.dcp.folder import read_folder
from elastic_ir.formats.dcp.metadata import metadata_bytes
from tests.checkpoints.dcp_folders import (
    Net,
    loaded,
    metadata_of,
    save,
    save_sharded,
    state_of,
    step,
    trained,
)

PLAN = "0-3,1,2"
ORDER = [0, 1, 2, 3, 1, 2]


def run(*arguments: object, ok: bool = True) -> str:
    result = CliRunner().invoke(elastic_ir, list(map(str, arguments)))
    assert (result.exit_code == 0) is ok, result.output
    return result.output


def deeper(source: Path, out: Path, **how: Any) -> Path:
    eir.save(eir.stretch(eir.load(source), **(how or {"plan": PLAN})), out)
    return out


def weight(net: torch.nn.Module, path: str) -> torch.Tensor:
    found: torch.Tensor = net.state_dict()[f"{path}.weight"]
    return found


def origin_of(name: str) -> str:
    head, number, *rest = name.split(".", 2)
    return f"{head}.{ORDER[int(number)]}.{rest[0]}" if head == "layers" else name


@pytest.mark.everyday(1)
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_torch_restores_network_and_optimizer(tmp_path: Path, flat: bool, ranks: int) -> None:
    """The deeper network, as it is natively built, gets its source's weights and moments, and trains on."""
    source = save(tmp_path / "source", flat=flat, ranks=ranks)
    out = deeper(source, tmp_path / "out")
    net, optimizer, state = loaded(out, 6, flat)
    before, optimizer_before = trained()
    weights = before.state_dict()
    assert {
        name: torch.equal(tensor, weights[origin_of(name)]) for name, tensor in net.state_dict().items()
    } == (dict.fromkeys(net.state_dict(), True))
    moments: Any = get_optimizer_state_dict(before, optimizer_before)
    made: Any = get_optimizer_state_dict(net, optimizer)
    for name, held in made["state"].items():
        assert isinstance(held, dict) and set(held) == {"step", "exp_avg", "exp_avg_sq"}
        for key, tensor in held.items():
            assert torch.equal(tensor, moments["state"][origin_of(name)][key]), (name, key)
    groups = [(len(group["params"]), group["weight_decay"]) for group in made["param_groups"]]
    assert groups == [(14, 0.1), (25, 0.0)]
    assert (state["lr"], state["step"]) == ({"last_epoch": 3}, 7)
    first = step(net, optimizer)
    assert step(net, optimizer) != first


def test_files_and_names_are_those_of_the_source(tmp_path: Path) -> None:
    """Each rank's file begins as it was; the further copies lie behind."""
    source = save(tmp_path / "source", flat=True, ranks=4)
    (source / "meta.pt").write_bytes(b"of the trainer")
    (source / ".hidden").write_bytes(b"")
    out = deeper(source, tmp_path / "out")
    names = {path.name for path in source.iterdir()} - {".hidden"} | {"elastic_ir.json"}
    assert {path.name for path in out.iterdir()} == names
    for file in source.glob("*.distcp"):
        assert (out / file.name).read_bytes().startswith(file.read_bytes())
    assert (out / "meta.pt").read_bytes() == b"of the trainer"
    before, after = metadata_of(source), metadata_of(out)
    native = Net(6).state_dict()
    assert {n.removeprefix("model.") for n in after.state_dict_metadata if n.startswith("model.")} == set(
        native
    )
    assert after.planner_data["optim.state.layers.5.up.weight.exp_avg"] == (
        "optim", "state.layers.5.up.weight.exp_avg",
    )  # fmt: skip
    chunks = [
        metadata.state_dict_metadata[f"model.layers.{number}.up.weight"].chunks
        for metadata, number in ((before, 2), (after, 5))
    ]
    assert chunks[0] == chunks[1] and len(chunks[0]) == 4


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_values_are_put_together_of_shards(tmp_path: Path, axis: int) -> None:
    net = Net(4)
    save_sharded({"model": net.state_dict()}, tmp_path / "source", 3, axis)
    eir.save(eir.load(tmp_path / "source"), tmp_path / "whole.safetensors")
    graph = eir.load(tmp_path / "whole.safetensors")
    assert set(graph.weights) == set(net.state_dict())
    for name, tensor in graph.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name


def test_squeeze_takes_out_and_undo_brings_back(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    out = tmp_path / "out"
    eir.save(eir.squeeze(eir.load(source), drop=[1, 2]), out)
    names = set(metadata_of(out).state_dict_metadata)
    assert "optim.state.layers.1.up.weight.exp_avg" in names
    assert not any("layers.2." in name for name in names)
    net, _, _ = loaded(out, 2)
    assert torch.equal(weight(net, "layers.1.up"), weight(trained()[0], "layers.3.up"))
    assert eir.verify_checkpoint(out, source).differences == []
    made = deeper(source, tmp_path / "deeper")
    run("undo", made, "-o", tmp_path / "back")
    assert metadata_of(tmp_path / "back").state_dict_metadata == metadata_of(source).state_dict_metadata
    for file in source.glob("__1*.distcp"):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    assert eir.load(made).stages[0].name == "layers"


def test_verify_finds_what_differs_beside_the_network(tmp_path: Path) -> None:
    source = save(tmp_path / "source", flat=True, ranks=2)
    out = deeper(source, tmp_path / "out")
    assert "equal" in run("verify", out, "--against", source)
    place = metadata_of(out).storage_data
    at = next(info for index, info in place.items() if index.fqn == "optim.state.layers.5.up.weight.exp_avg")
    raw = bytearray((out / at.relative_path).read_bytes())
    raw[at.offset + at.length // 2] ^= 1
    (out / at.relative_path).write_bytes(raw)
    found = eir.verify_checkpoint(out, source).differences
    assert [(one.tensor, one.origin, one.what) for one in found] == [
        (
            "optim.state.layers.5.up.weight.exp_avg", "source:optim.state.layers.2.up.weight.exp_avg",
            "differs from its origin",
        )
    ]  # fmt: skip


@pytest.mark.slow
def test_scaled_copies_lie_in_files_of_their_own(tmp_path: Path) -> None:
    source = save(tmp_path / "source", flat=True, ranks=2)
    out = deeper(source, tmp_path / "out", plan=PLAN, scale="down=0.5")
    net, _, _ = loaded(out, 6, flat=True)
    before = trained()[0]
    assert torch.equal(weight(net, "layers.4.down"), weight(before, "layers.1.down") / 2)
    assert torch.equal(weight(net, "layers.1.down"), weight(before, "layers.1.down"))
    assert len(list(out.glob("*.distcp"))) == 2 + 4
    assert eir.verify_checkpoint(out, source).differences == []


def test_an_average_follows_and_another_network_stays(tmp_path: Path) -> None:
    """An average has the network's names and shapes; a teacher of another width does not, and is kept."""
    ema = {name: tensor / 2 for name, tensor in trained()[0].state_dict().items()}
    teacher = {"layers.0.up.weight": torch.ones(3, 3), "layers.1.up.weight": torch.ones(3, 3)}
    extra = {"ema": ema, "teacher": teacher}
    source = save(tmp_path / "source", extra=extra)
    with pytest.raises(SourceError, match=r"model \(27 tensors\), ema \(27 tensors\).* --key model"):
        eir.load(source)
    graph = eir.stretch(eir.load(source, key="model"), plan=PLAN)
    eir.save(graph, tmp_path / "out")
    assert dict(graph.emitted.beside) == {"following": "ema, optim", "kept": "lr, step, teacher, as they are"}
    names = set(metadata_of(tmp_path / "out").state_dict_metadata)
    assert {name.removeprefix("ema.") for name in names if name.startswith("ema.")} == set(
        Net(6).state_dict()
    )
    assert {name for name in names if name.startswith("teacher.")} == {f"teacher.{name}" for name in teacher}
    averaged = eir.load(source, key="ema").state_dict()
    assert torch.equal(averaged["head.weight"], ema["head.weight"])


def test_a_network_at_the_top_and_what_its_layers_keep_beside(tmp_path: Path) -> None:
    """torchtitan's form: the network's names are in no dictionary; a layer's extra state follows it."""
    net, optimizer = trained()
    state = state_of(net, optimizer, flat=True)
    top = {**state["model"], "optimizer": state["optim"], "layers.1.norm._extra_state": {"scale": 2}}
    save_sharded(top, tmp_path / "source", 2)
    graph = eir.load(tmp_path / "source")
    assert graph.origin.facts()[0] == ("checkpoint", "27 tensors, 379 further entries")
    eir.save(eir.stretch(graph, plan=PLAN), tmp_path / "out")
    names = metadata_of(tmp_path / "out").state_dict_metadata
    assert {"layers.5.up.weight", "optimizer.state.layers.5.up.weight.exp_avg"} <= set(names)
    extra = {name for name in names if "_extra_state" in name}
    assert extra == {"layers.1.norm._extra_state.scale", "layers.4.norm._extra_state.scale"}


def test_with_an_architecture_the_weights_are_its(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    graph = eir.load(source, arch=eir.trace(Net(4), (torch.zeros(1, 3, dtype=torch.long),)))
    module = eir.stretch(graph, plan=PLAN).to_module()
    assert isinstance(module, Net) and len(module.layers) == 6
    assert torch.equal(weight(module, "layers.5.up"), weight(trained()[0], "layers.2.up"))


def test_the_command_line_says_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "step-100", ranks=2)
    text = run("inspect", source)
    assert "27 tensors under model" in text and "further entries" in text and "optim, lr, step" in text
    monkeypatch.chdir(tmp_path)
    text = run("stretch", "step-100", "--to-units", 6)
    assert "following:  optim" in text and "lr, step, as they are" in text
    assert (tmp_path / "step-100-depth13" / ".metadata").is_file()
    text = run("diff", "step-100", "step-100-depth13")
    assert "layers" in text
    text = run("stretch", "step-100", "--to-units", 6, "-o", "weights.safetensors")
    assert "left behind: optim, lr, step" in text


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "source", flat=True, ranks=4)
    (source / "__2_0.distcp").unlink()
    error = run("inspect", source, ok=False)
    assert "lacks __2_0.distcp, where 81 of its entries lie (model.emb.weight for example)" in error
    assert "bring those of all ranks into one folder" in error and error.count("\n") == 1


def test_a_file_cut_short_and_a_save_that_was_not_finished(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    whole = (source / "__1_0.distcp").read_bytes()
    (source / "__1_0.distcp").write_bytes(whole[:-5])
    with pytest.raises(
        SourceError, match=r"__1_0.distcp is truncated: .* reaches to byte \d+, and it has \d+"
    ):
        eir.load(source)
    (source / "__1_0.distcp").write_bytes(whole)
    (source / ".metadata").rename(source / "__0.metadata")
    with pytest.raises(SourceError, match=r"only those of single ranks \(__0.metadata\)"):
        eir.load(source)
    (source / "__0.metadata").unlink()
    with pytest.raises(SourceError, match=r"has no \.metadata, .* the save was not finished"):
        eir.load(source)


class Gadget:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch marker",)


def test_no_pickle_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "source")
    metadata = metadata_of(source)
    metadata.planner_data["step"] = (Gadget(),)
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        UntrustedError, match=r"names posix.system, which the metadata of a checkpoint has no need"
    ):
        eir.load(source)
    assert not Path("marker").exists()


@pytest.mark.slow
def test_damaged_metadata_is_told_in_a_line(tmp_path: Path) -> None:
    """Bytes of the metadata are changed at random: what torch's own names cannot make is refused in our words."""
    source = save(tmp_path / "source", ranks=2)
    raw = (source / ".metadata").read_bytes()
    chance = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(150):
        made = bytearray(raw)
        for at in chance.integers(0, len(raw), 3):
            made[at] = chance.integers(0, 256)
        (source / ".metadata").write_bytes(made)
        try:
            eir.load(source)
        except SourceError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not any("\n" in message for message in refused)


def test_metadata_cut_short_or_begun_twice(tmp_path: Path) -> None:
    source = save(tmp_path / "source")
    raw = (source / ".metadata").read_bytes()
    for made, message in (
        (raw[: len(raw) // 2], "is damaged: it cannot be read"),
        (raw[:2] * 10_000 + raw, "states its protocol in an unusual way"),
        (raw[:1] + b"\xff" + raw[2:], "states its protocol in an unusual way"),
    ):
        (source / ".metadata").write_bytes(made)
        with pytest.raises(SourceError, match=message):
            eir.load(source)


def test_places_that_lie(tmp_path: Path) -> None:
    source = save(tmp_path / "source", ranks=2)
    for change, message in (
        (
            lambda info, box: setattr(info, "relative_path", "../other"),
            "outside of the folder; it is not read",
        ),
        (lambda info, box: setattr(info, "length", 1 << 40), "is truncated"),
        (lambda info, box: setattr(box, "sizes", torch.Size([1, 8])), "do not fill its shape .* of a rank"),
        (lambda info, box: setattr(box, "offsets", torch.Size([40, 0])), "nothing says where"),
    ):
        metadata = metadata_of(source)
        info = next(i for index, i in metadata.storage_data.items() if index.fqn == "model.emb.weight")
        change(info, metadata.state_dict_metadata["model.emb.weight"].chunks[0])  # type: ignore[no-untyped-call]
        damaged = tmp_path / "damaged"
        shutil.copytree(source, damaged)
        (damaged / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(SourceError, match=message):
            eir.load(damaged)
        shutil.rmtree(damaged)


def test_an_entry_that_is_another_tensor_is_found_when_it_is_read(tmp_path: Path) -> None:
    source = save(tmp_path / "source")
    metadata = metadata_of(source)
    places = {index.fqn: index for index in metadata.storage_data}
    one, other = places["model.head.bias"], places["model.emb.weight"]
    place = metadata.storage_data
    place[one], place[other] = place[other], place[one]
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        SourceError, match=r"does not hold the part of 'model.emb.weight' .* float32 \[30, 8\]"
    ):
        eir.save(eir.load(source), tmp_path / "out.safetensors")


def test_what_cannot_follow_is_refused(tmp_path: Path) -> None:
    net, optimizer = trained()
    numbered = {"model": net.state_dict(), "optim": optimizer.state_dict()}
    save_sharded(numbered, tmp_path / "numbered", 1)
    graph = eir.load(tmp_path / "numbered")
    with pytest.raises(EmitError, match=r"an optimizer's state by numbers, .* -o NAME.safetensors"):
        eir.save(eir.stretch(graph, plan=PLAN), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    eir.save(graph, tmp_path / "same")  # nothing has to follow
    source = save(tmp_path / "source")
    other = eir.load(save(tmp_path / "other"))
    mixed = eir.stretch(eir.load(source), plan="0-3,b/1", others={"b": other})
    with pytest.raises(EmitError, match="layers of another checkpoint come without theirs"):
        eir.save(mixed, tmp_path / "out")
    masked = eir.load(source, masks={"head.weight": torch.eye(30, 8)})
    with pytest.raises(EmitError, match=r"holds no masks, and head\.weight has one"):
        eir.save(masked, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        eir.save(eir.load(source), tmp_path / "other")
    with pytest.raises(SourceError, match=r"has nothing under the key 'nets'; it holds model \(27 tensors\)"):
        eir.load(source, key="nets")


def test_layers_of_another_checkpoint_without_optimizers(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 5)):
        save_sharded({"model": Net(4, seed).state_dict()}, tmp_path / name, 2)
    one, two = (eir.load(tmp_path / name) for name in ("one", "two"))
    eir.save(eir.stretch(one, plan="0-3,b/1", others={"b": two}), tmp_path / "out")
    made = eir.load(tmp_path / "out").state_dict()
    assert torch.equal(made["layers.4.up.weight"], two.state_dict()["layers.1.up.weight"])
    assert eir.verify_checkpoint(tmp_path / "out", [tmp_path / "one", tmp_path / "two"]).differences == []


def test_metadata_is_written_as_it_was_read(tmp_path: Path) -> None:
    source = save(tmp_path / "source", flat=True, ranks=3)
    metadata = read_folder(source).metadata
    again = pickle.load(io.BytesIO(metadata_bytes(metadata)))
    native = metadata_of(source)
    assert again.state_dict_metadata == native.state_dict_metadata
    assert again.storage_data == native.storage_data
    assert again.planner_data == native.planner_data
