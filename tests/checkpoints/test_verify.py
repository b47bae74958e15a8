"""``verify``: what a streamed folder holds against where its record says that it comes from."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.verify import Verified
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError
from tests.checkpoints.folders import State, config, llama, run, write

UP = "model.layers.{}.mlp.up_proj.weight"


def told(found: Verified) -> list[tuple[str, str, str]]:
    return [(one.tensor, one.origin, one.what) for one in found.differences]


def verified(*arguments: Any, **options: Any) -> Verified:
    """What differs by the bytes; nothing is compared with a network, for which a process would import torch."""
    return eir.verify_checkpoint(*arguments, check=False, **options)


def edit(folder: Path, change: Callable[[State], Any]) -> None:
    """Write a folder's one file of weights anew after a change."""
    state = dict(load_file(folder / "model.safetensors"))
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def other_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the last step of a folder's record."""
    data = json.loads((folder / "elastic_ir.json").read_text())
    change(data["history"][-1])
    (folder / "elastic_ir.json").write_text(json.dumps(data))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", llama(), config(4), shards=3)


@pytest.fixture
def out(source: Path) -> Path:
    """The source with its second layer once more."""
    path = source.with_name("out")
    eir.save(eir.stretch(eir.load(source, headers_only=True), plan="0-3,1"), path, check=False)
    return path


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("stretch", ("--to-units", 7, "--shard-size", "2kB")),
        ("stretch", ("--plan", "0-2,1-3")),
        ("squeeze", ("--drop", "1,2")),
        ("squeeze", ("--to-units", 1)),
        ("squeeze", ("--plan", "3,0")),
    ],
)
def test_what_was_written_is_equal(
    source: Path, tmp_path: Path, command: str, options: tuple[Any, ...]
) -> None:
    assert run(command, source, *options, "-o", tmp_path / "out").exit_code == 0
    found = verified(tmp_path / "out")
    assert (found.how, found.sources, told(found)) == ("record", (source,), [])
    assert found.compared == found.tensors == len(eir.load(tmp_path / "out", headers_only=True).weights)
    (tmp_path / "away").mkdir()
    (tmp_path / "out").rename(tmp_path / "away" / "out")
    assert not verified(tmp_path / "away" / "out", source).differences


def test_the_command_line_without_torch(source: Path, out: Path) -> None:
    code = (
        "import sys; from elastic_ir.cli.app import elastic_ir as run\n"
        f"run(['verify', {str(out)!r}, '--no-check'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"folder:     {out} (48 tensors, 7.6 kB)\n"
        f"against:    {source} (found beside it)\n"
        "compared:   48 tensors, byte by byte\n"
        "result:     equal\n"
    )


def test_a_chain_is_held_against_the_last_source(source: Path, out: Path, tmp_path: Path) -> None:
    run("squeeze", out, "--plan", "4,2", "-o", tmp_path / "back")
    assert verified(tmp_path / "back").sources == (out,)
    assert not verified(tmp_path / "back", [out]).differences
    found = verified(tmp_path / "back", [source])  # not what it was made from
    assert (UP.format(0), f"source:{UP.format(4)}") in [(name, origin) for name, origin, _ in told(found)]


@pytest.mark.parametrize("number", [1, 4])
def test_one_byte(source: Path, out: Path, number: int) -> None:
    name = UP.format(number)

    def flip(state: State) -> None:
        state[name].view(np.uint8).reshape(-1)[100] ^= 1

    edit(out, flip)
    found = verified(out)
    assert told(found) == [(name, f"source:{UP.format(1)}", "differs, first at byte 100 of 256")]
    done = run("verify", out)
    assert done.exit_code == 1
    assert f"{name} differs, first at byte 100 of 256 (source:{UP.format(1)})\n" in done.output
    assert "result:     differs\n" in done.output
    assert f"error: 1 of 48 tensors of {out} are not as they should be\n" in done.output
    source.rename(source.parent / "renamed")  # the copies tell, though not which of them is right
    found = verified(out)
    assert told(found) == [(UP.format(4), f"out:{UP.format(1)}", "differs, first at byte 100 of 256")]


def test_a_source_of_another_content(source: Path, out: Path) -> None:
    write(source, llama(seed=1), config(4), shards=3)
    done = run("verify", out)
    assert done.exit_code == 1
    assert "and 38 more\n" in done.output
    assert f"error: 48 of 48 tensors of {out} are not as they should be" in done.output


def test_without_the_source_it_is_said(source: Path, out: Path) -> None:
    source.rename(source.parent / "renamed")
    done = run("verify", out)
    assert done.exit_code == 0
    assert "compared:   9 tensors, byte by byte\n" in done.output
    assert (
        "origins:    not checked, as source is not beside it: only copies of one layer were compared"
        in done.output
    )
    assert "result:     equal, as far as could be checked\n" in done.output
    data = json.loads(run("verify", out, "--json").output)
    assert (data["how"], data["origins_checked"], data["equal"]) == ("copies", False, True)


def test_hashes_and_json(source: Path, out: Path) -> None:
    edit(out, lambda state: state.update({"model.norm.weight": state["model.norm.weight"] + 1}))
    done = run("verify", out, "--json", "--hashes")
    data = json.loads(done.output.partition("\nerror:")[0])
    assert done.exit_code == 1
    assert data["differences"] == [
        {
            "tensor": "model.norm.weight",
            "origin": "source:model.norm.weight",
            "what": "differs, first at byte 0 of 16",
        }
    ]
    made = load_file(out / "model.safetensors")
    wanted = llama()
    assert data["sha256"].keys() == made.keys()
    for name, array in made.items():
        twin = wanted[name.replace("layers.4.", "layers.1.")]
        assert data["sha256"][name] == {
            "is": hashlib.sha256(array.tobytes()).hexdigest(), "should_be": hashlib.sha256(twin.tobytes()).hexdigest(),
        }  # fmt: skip
    lines = run("verify", out, "--hashes").output.splitlines()
    assert f"{data['sha256'][UP.format(4)]['is']}  {UP.format(4)}" in lines


def test_names_that_are_missing_or_more(source: Path, out: Path) -> None:
    def change(state: State) -> None:
        state["model.layers.5.mlp.up_proj.weight"] = state[UP.format(0)].copy()
        state["model.extra.weight"] = state[UP.format(0)].copy()
        state["model.layers.1.more.weight"] = state[UP.format(0)].copy()
        del state["model.norm.weight"], state[UP.format(4)]

    edit(out, change)
    (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert sorted(told(verified(out))) == [
        ("model.extra.weight", "source:model.extra.weight", "is of 'model.extra.weight', which source does not hold"),
        ("model.layers.1.more.weight", "source:model.layers.1.more.weight",
         "is of 'model.layers.1.more.weight' by the record's lineage, of layer 1 by its plan"),
        ("model.layers.1.more.weight", "source:model.layers.1.more.weight",
         "is of 'model.layers.1.more.weight', which source does not hold"),
        (UP.format(4), f"source:{UP.format(1)}", "is missing"),
        (UP.format(5), "", "lies outside of the plan, which has 5 layers at model.layers"),
        (UP.format(5), f"source:{UP.format(5)}", f"is of '{UP.format(5)}', which source does not hold"),
        ("model.norm.weight", "source:model.norm.weight", "is missing"),
    ]  # fmt: skip


def test_layers_that_only_the_source_has(source: Path, tmp_path: Path) -> None:
    """A fourth layer equal to the source's, though the plan has two."""
    run("squeeze", source, "--to-units", 2, "-o", tmp_path / "out")
    edit(tmp_path / "out", lambda state: state.update({UP.format(3): llama()[UP.format(3)]}))
    (tmp_path / "out" / "config.json").write_text("{}")
    found = verified(tmp_path / "out")
    assert told(found) == [(UP.format(3), "", "lies outside of the plan, which has 2 layers at model.layers")]


def test_other_dtypes_and_shapes(source: Path, out: Path) -> None:
    def change(state: State) -> None:
        state["model.norm.weight"] = state["model.norm.weight"].view(np.int16)
        state["lm_head.weight"] = state["lm_head.weight"].reshape(16, 16)

    edit(out, change)
    assert told(verified(out)) == [
        ("lm_head.weight", "source:lm_head.weight", "is float16 [16, 16], its origin float16 [32, 8]"),
        ("model.norm.weight", "source:model.norm.weight", "is int16 [8], its origin float16 [8]"),
    ]


def test_a_record_that_contradicts_itself(source: Path, out: Path) -> None:
    where = f"source:{UP.format(2)}"
    other_record(out, lambda step: step["lineage"].update({UP.format(4): UP.format(2)}))
    assert told(verified(out)) == [
        (UP.format(4), where, f"is of '{UP.format(2)}' by the record's lineage, of layer 1 by its plan"),
        (UP.format(4), where, "differs, first at byte 0 of 256"),
    ]
    other_record(out, lambda step: step["plan"].update({"model.layers": "0-3,x"}))
    with pytest.raises(SourceError, match=r"elastic_ir.json of out is damaged: '0-3,x' is not a plan"):
        verified(out)


def test_scaled_tensors_and_zeros(source: Path, out: Path) -> None:
    half, none, signed = (
        UP.format(4),
        "model.layers.4.mlp.down_proj.weight",
        "model.layers.4.mlp.gate_proj.weight",
    )

    def change(state: State) -> None:
        state[half] = (state[half].astype(np.float64) * 0.3).astype(np.float16)
        state[none] = np.zeros_like(state[none])
        state[signed] = np.copysign(state[none].T, state[signed])  # with the signs of what was there

    edit(out, change)
    twins = {name: name.replace("layers.4.", "layers.1.") for name in (half, none, signed)}
    factors = {half: 0.3, none: 0, signed: 0.0}
    scaled = {name: {"name": twins[name], "scale": factors[name]} for name in twins}
    other_record(out, lambda step: step["lineage"].update(scaled))
    assert not verified(out).differences
    edit(out, lambda state: state[none].reshape(-1).__setitem__(3, 1))
    edit(out, lambda state: state[half].reshape(-1).__setitem__(5, 2))
    assert told(verified(out)) == [
        (none, f"source:{twins[none]}", "is not zero at byte 7 of 256"),
        (half, f"source:{twins[half]}", "differs, first at byte 10 of 256"),
    ]
    source.rename(source.parent / "renamed")
    assert told(verified(out)) == [(none, f"out:{none}", "is not zero at byte 7 of 256")]


def test_several_sources(source: Path, out: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", llama(seed=1), config(4))

    def change(state: State) -> None:
        state |= {
            n.replace("layers.2.", "layers.4."): a for n, a in llama(seed=1).items() if "layers.2." in n
        }

    def record(step: dict[str, Any]) -> None:
        step["sources"] = ["source", "other"]
        step["plan"] = {"model.layers": "0-3,b/2"}
        for name in step["lineage"]:
            step["lineage"][name] = {"name": name.replace("layers.4.", "layers.2."), "source": 1}

    edit(out, change)
    other_record(out, record)
    found = verified(out)
    assert (found.sources, told(found)) == ((source, other), [])
    assert not verified(out, [source, other]).differences
    assert len({name for name, *_ in told(verified(out, [other, source]))}) == 48
    with pytest.raises(SourceError) as error:
        verified(out, source)
    assert str(error.value) == (
        f"{out} was made from source, other (sources: 2), and --against gives 1; give each once, in that order"
    )
    edit(out, lambda state: state[UP.format(4)].reshape(-1).__setitem__(0, 9))
    assert told(verified(out)) == [(UP.format(4), f"other:{UP.format(2)}", "differs, first at byte 0 of 256")]


def test_masks(source: Path, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((16, 8)) < 0.5
    save_file({UP.format(1): mask}, source / "model.masks.safetensors")
    out = tmp_path / "out"
    run("stretch", source, "--plan", "0-3,1", "-o", out)
    assert not verified(out).differences
    masks = dict(eir.load(out, headers_only=True).masks())
    assert set(masks) == {UP.format(1), UP.format(4)}
    edit(out, lambda state: state.update({UP.format(4): llama()[UP.format(1)]}))  # pruned weights are back
    (one,) = told(verified(out))
    assert one[:2] == (UP.format(4), f"source:{UP.format(1)}")
    save_file({UP.format(1): mask, UP.format(4): ~mask}, out / "model.masks.safetensors")
    assert told(verified(out)) == [
        (UP.format(4), f"source:{UP.format(1)}", "has another mask than its origin")
    ]
    save_file({UP.format(1): mask}, out / "model.masks.safetensors")
    assert told(verified(out)) == [
        (UP.format(4), f"source:{UP.format(1)}", "has no mask, and its origin one")
    ]
    save_file({"x": mask, UP.format(1): mask, UP.format(4): mask[:2]}, out / "model.masks.safetensors")
    assert told(verified(out)) == [
        ("x", "", "is a mask of no tensor"), (UP.format(4), "", "has a mask of shape [2, 8]"),
    ]  # fmt: skip


def test_masks_that_were_given_beside_the_source(source: Path, tmp_path: Path) -> None:
    """The source has no masks of its own: the pruned weights are zeros, and the others the source's."""
    mask = np.random.default_rng(0).random((16, 8)) < 0.5
    save_file({UP.format(1): mask}, tmp_path / "given.safetensors")
    out = tmp_path / "out"
    run("stretch", source, "--plan", "0-3,1", "--mask", tmp_path / "given.safetensors", "-o", out)
    assert not verified(out).differences
    edit(out, lambda state: state[UP.format(4)].__setitem__(~mask, 1))
    for found in (verified(out), alone(out, source)):
        (one,) = told(found)
        assert one[0] == UP.format(4)
        assert one[2].startswith("differs, first at byte")


def alone(out: Path, source: Path) -> Verified:
    """What is found where the source is not at hand."""
    source.rename(source.parent / "renamed")
    return verified(out)


def test_without_a_record(source: Path, out: Path, tmp_path: Path) -> None:
    (out / "elastic_ir.json").unlink()
    done = run("verify", out)
    assert done.exit_code == 1
    assert done.output == (
        f"error: {out} has no elastic_ir.json, which states where its tensors come from; give one source to compare "
        "with by names (--against SOURCE)\n"
    )
    twin = write(tmp_path / "twin", llama(), config(4))
    done = run("verify", twin, "--against", source)
    assert done.exit_code == 0
    assert (
        "note:       no record (elastic_ir.json) states where the tensors come from: compared by names\n"
        in done.output
    )
    found = verified(out, source)
    assert {name for name, *_ in told(found)} == {
        n for n in load_file(out / "model.safetensors") if "layers.4." in n
    }
    assert all("which source does not hold" in what for *_, what in told(found))


def test_against_what_is_no_source(source: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none", source / "config.json"):
        with pytest.raises(SourceError) as error:
            verified(out, path)
        assert str(error.value) == f"{path} is not a folder of a checkpoint's weights"
    with pytest.raises(SourceError, match="out is the folder itself; give the source that it was made from"):
        verified(out, out)
    (source / "model-00002-of-00003.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="is empty"):
        verified(out)


@pytest.mark.slow
def test_a_damaged_folder_is_no_difference_but_an_error(out: Path) -> None:
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(SourceError, match="is truncated"):
        verified(out)
    (out / "model.safetensors").write_bytes(whole)
    (out / "config.json").write_text(json.dumps(config(4)))
    with pytest.raises(SourceError, match="states num_hidden_layers = 4, but the weights hold 5 layers"):
        verified(out)
    (out / "elastic_ir.json").rename(out.parent / "secret")
    (out / "elastic_ir.json").symlink_to(out.parent / "secret")
    (out / "config.json").write_text(json.dumps(config(5)))
    with pytest.raises(SourceError, match="is a symbolic link out of the folder"):
        verified(out)


def test_a_source_of_torch_save(tmp_path: Path) -> None:
    """A transposed tensor is picked out by its strides, the others are ranges of the file."""
    tensors = {name: torch.from_numpy(array) for name, array in llama().items()}
    tensors[UP.format(1)] = tensors[UP.format(1)].t().contiguous().t()
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config(4)))
    torch.save(tensors, source / "pytorch_model.bin")
    eir.save(eir.stretch(eir.load(source, headers_only=True), plan="0-3,1"), tmp_path / "out", check=False)
    assert not verified(tmp_path / "out").differences
    edit(tmp_path / "out", lambda state: state[UP.format(4)].reshape(-1).__setitem__(1, 9))
    assert told(verified(tmp_path / "out")) == [
        (UP.format(4), f"source:{UP.format(1)}", "differs, first at byte 2 of 256")
    ]


def test_progress_ends_with_all_bytes(out: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = verified(out, tell=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.nbytes, found.nbytes)
    assert len(seen) == found.tensors


def test_a_file_that_changes_meanwhile(source: Path, out: Path) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(source / "model-00002-of-00003.safetensors", ns=(done, done))

    with pytest.raises(SourceError, match="was changed after it was read"):
        verified(out, tell=touch)


def test_large_tensors_in_pieces(tmp_path: Path) -> None:
    """Pieces of two files need not be cut alike; the place of a difference counts from the tensor's start."""
    big = np.zeros((9, 1 << 20), np.float16)
    state = {f"model.layers.{i}.proj.weight": big for i in range(2)}
    source = write(tmp_path / "source", dict(state), config(2))
    eir.save(eir.load(source, headers_only=True), tmp_path / "out", check=False)
    assert not verified(tmp_path / "out").differences
    edit(
        tmp_path / "out",
        lambda held: held["model.layers.1.proj.weight"].reshape(-1).__setitem__(9_000_000, 1),
    )
    ((name, _, what),) = told(verified(tmp_path / "out"))
    assert (name, what) == ("model.layers.1.proj.weight", "differs, first at byte 18000001 of 18874368")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"model.layers": "0-5000000000"}, "is not a plan .the plan has 5,000,000,001 blocks"),
        ({"model.layers": 5}, "its plan is not a table of texts"),
        ({"other": "0-3"}, "there are no layers at 'other', which its plan states"),
    ],
)
def test_a_plan_that_cannot_be(out: Path, plan: Any, message: str) -> None:
    other_record(out, lambda step: step.__setitem__("plan", plan))
    with pytest.raises(SourceError, match=message):
        verified(out)


# -- with the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_network_vouches(source: Path, out: Path, tmp_path: Path, beside: bool) -> None:
    if not beside:
        source.rename(tmp_path / "moved")
    found = eir.verify_checkpoint(out)
    assert not found.differences
    assert found.network == "every name, shape and kind of layer with LlamaForCausalLM as config.json has it"
    done = CliRunner().invoke(elastic_ir, ["verify", str(out)])
    assert f"network:    {found.network}\n" in done.output
    assert done.exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ({"num_hidden_layers": 4}, "does not fit LlamaForCausalLM: model.layers.4.input_layernorm.weight has no place"),
        ({"num_hidden_layers": 6}, "does not fit LlamaForCausalLM: model.layers.5.input_layernorm.weight would be"),
        ({"rms_norm_eps": "small"}, "cannot be built of it"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_network(
    out: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, Any], what: str
) -> None:
    """Every byte is as it should be."""
    monkeypatch.setattr(
        "elastic_ir.checkpoints.read.check_depth", lambda *_: None
    )  # which sees a wrong count first
    edited = {**json.loads((out / "config.json").read_text()), **entries}
    (out / "config.json").write_text(json.dumps(edited))
    done = CliRunner().invoke(elastic_ir, ["verify", str(out)])
    assert what in done.output and "result:     differs" in done.output
    assert f"error: {out}/config.json is of another network" in done.output
    assert done.exit_code == 1
    assert run("verify", out).exit_code == 0


@pytest.mark.slow
def test_a_layer_of_another_kind(tmp_path: Path) -> None:
    """Names and shapes are those of the layers that were copied, and the windows are not."""
    import transformers as t

    from tests.networks.transformers_families import SMALL

    settings = t.Qwen2Config(**SMALL, num_hidden_layers=4, num_key_value_heads=2, use_sliding_window=True,
                             sliding_window=4, max_window_layers=2)  # fmt: skip
    t.Qwen2ForCausalLM(settings).save_pretrained(tmp_path / "source")
    out = tmp_path / "out"
    eir.save(eir.stretch(eir.load(tmp_path / "source", headers_only=True), to_units=6), out, check=False)
    assert not eir.verify_checkpoint(out).differences
    edited = json.loads((out / "config.json").read_text())
    edited["layer_types"][1] = "sliding_attention"
    (out / "config.json").write_text(json.dumps(edited))
    (found,) = eir.verify_checkpoint(out).differences
    assert found.tensor == "config.json"
    assert "layer 1 of model.layers, a copy of layer 1, would be of another kind: " in found.what
