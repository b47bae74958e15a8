"""Adapters of PEFT, written by hand in its layout: tensors follow the base's layers, and are scaled with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.adapters.change import Change
from elastic_ir.checkpoints.adapters.places import places_in
from elastic_ir.checkpoints.record import read_record
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError, SourceError
from tests.checkpoints.folders import config, llama, run, write

Tensors = dict[str, Any]

ROOT = "base_model.model."
MODULES = ("self_attn.q_proj", "mlp.down_proj")
SIZES = {"self_attn.q_proj": (8, 8), "self_attn.o_proj": (8, 8), "mlp.down_proj": (16, 8)}


def lora(layers: Sequence[int], modules: Sequence[str] = MODULES, head: str = "model.layers") -> Tensors:
    """Random factors, others in each layer."""
    rng = np.random.default_rng(7)
    state: Tensors = {}
    for layer in layers:
        for module in modules:
            inner, outer = SIZES.get(module, (8, 8))
            path = f"{ROOT}{head}.{layer}.{module}"
            state[f"{path}.lora_A.weight"] = rng.standard_normal((2, inner)).astype(np.float32)
            state[f"{path}.lora_B.weight"] = rng.standard_normal((outer, 2)).astype(np.float32)
    return state


def adapter(folder: Path, state: Tensors, **settings: Any) -> Path:
    """A folder as PEFT saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "peft_type": "LORA", "base_model_name_or_path": "source", "r": 2, "lora_alpha": 4,
        "target_modules": ["q_proj", "down_proj"], "layers_to_transform": None, "layers_pattern": None,
        "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(given))
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def source(folder: Path, layers: int = 4) -> Path:
    return write(folder / "source", llama(layers), config(layers))


def changed(folder: Path, plan: str, *more: str, layers: int = 4) -> Path:
    """The source, and what ``stretch`` makes of it by a plan."""
    result = run("stretch", source(folder, layers), "--plan", plan, *more, "-o", folder / "changed")
    assert result.exit_code == 0, result.output
    return folder / "changed"


def followed(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the settings of an adapter."""
    return load_file(folder / "adapter_model.safetensors"), json.loads(
        (folder / "adapter_config.json").read_text()
    )


def layer_of(state: Tensors, layer: int, head: str = "model.layers") -> Tensors:
    before = f"{ROOT}{head}.{layer}."
    return {name.removeprefix(before): array for name, array in state.items() if name.startswith(before)}


def check_layers(
    made: Tensors, before: Tensors, order: Sequence[int | None], head: str = "model.layers"
) -> None:
    """Whether each layer has the tensors of the one that it was made from, and there are no others."""
    for at, layer in enumerate(order):
        own, wanted = layer_of(made, at, head), layer_of(before, layer, head) if layer is not None else {}
        assert own.keys() == wanted.keys()
        assert all(np.array_equal(own[name], wanted[name]) for name in own)
    assert sum(len(layer_of(made, at, head)) for at in range(len(order))) == sum(
        head in name for name in made
    )


@pytest.mark.parametrize("plan", [[0, 1, 2, 1, 2, 3], [3, 1]])
def test_each_layer_has_the_tensors_of_the_one_that_it_was_made_from(plan: list[int], tmp_path: Path) -> None:
    before = lora(range(4)) | {f"{ROOT}lm_head.lora_A.weight": np.ones((2, 8), np.float32)}
    given = adapter(tmp_path / "lora", before)
    (given / "tokenizer.json").write_text("{}")
    (given / "README.md").write_text("---\nbase_model: source\n---\n")
    (given / "optimizer.pt").write_bytes(b"")
    base, out = changed(tmp_path, ",".join(map(str, plan))), tmp_path / "out"
    result = run("follow", given, "--base", base, "-o", out)
    assert result.exit_code == 0, result.output
    assert "left out:   optimizer.pt" in result.output and f"base now:   {base}" in result.output
    assert {path.name for path in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "elastic_ir.json", "tokenizer.json"
    }  # fmt: skip
    made, settings = followed(out)
    check_layers(made, before, plan)
    assert np.array_equal(made[f"{ROOT}lm_head.lora_A.weight"], before[f"{ROOT}lm_head.lora_A.weight"])
    assert settings == {
        **json.loads((given / "adapter_config.json").read_text()),
        "base_model_name_or_path": str(base),
    }
    assert "in step with the model" in (out / "README.md").read_text()
    step = read_record(out)[-1]
    assert step.sources == ("lora",) and (step.gone == ()) == (len(plan) > 4)


def test_names_of_a_network_and_of_its_file_differ(tmp_path: Path) -> None:
    """GPT-2's files begin with ``h``, its module with ``transformer.h``."""
    state = {name.replace("model.layers", "h"): array for name, array in llama(3).items()}
    write(tmp_path / "source", state, config(3))
    base = tmp_path / "base"
    assert run("stretch", tmp_path / "source", "--plan", "0,1,1,2", "-o", base).exit_code == 0
    before = lora(range(3), head="transformer.h")
    given = adapter(
        tmp_path / "lora",
        before,
        target_modules=[f"h.{n}.self_attn.q_proj" for n in range(3)] + ["down_proj"],
    )
    made, settings = followed(eir.follow(given, base, tmp_path / "out"))
    check_layers(made, before, [0, 1, 1, 2], "transformer.h")
    assert settings["target_modules"] == [f"h.{n}.self_attn.q_proj" for n in range(4)] + ["down_proj"]


def test_two_changes_in_a_row(tmp_path: Path) -> None:
    """The record of both says which layer is of which of the adapter's base."""
    first = changed(tmp_path, "0-3,2,3")
    second = tmp_path / "second"
    assert run("squeeze", first, "--drop", "0,2", "-o", second).exit_code == 0
    before = lora(range(4))
    given = adapter(tmp_path / "lora", before)
    out = eir.follow(given, second, tmp_path / "out")
    check_layers(followed(out)[0], before, [1, 3, 2, 3])
    between = adapter(tmp_path / "between", lora(range(6)), base_model_name_or_path="somewhere/changed")
    check_layers(followed(eir.follow(between, second, tmp_path / "b"))[0], lora(range(6)), [1, 3, 4, 5])
    other = adapter(tmp_path / "other", before, base_model_name_or_path="ORG/another")
    with pytest.raises(
        SourceError, match="was made from source, then changed, and ORG/another is none of them; say"
    ):
        eir.follow(other, second, tmp_path / "c")
    assert eir.follow(other, second, tmp_path / "c", trained_on="source").is_dir()
    own = adapter(tmp_path / "own", before, base_model_name_or_path=str(second))
    with pytest.raises(SourceError, match="there is nothing to follow"):
        eir.follow(own, second, tmp_path / "d")
    # step by step it is the same
    half = eir.follow(given, first, tmp_path / "half")
    whole = eir.follow(half, second, tmp_path / "whole")
    assert all(np.array_equal(array, followed(out)[0][name]) for name, array in followed(whole)[0].items())
    assert len(read_record(whole)) == 2


def test_layers_of_another_network_have_none(tmp_path: Path) -> None:
    write(tmp_path / "other", llama(4, seed=5), config(4))
    base = changed(tmp_path, "0-3,b/1-2", "--with", f"b={tmp_path / 'other'}")
    before = lora(range(4))
    out = tmp_path / "out"
    result = run("follow", adapter(tmp_path / "lora", before), "--base", base, "-o", out)
    assert "note:       layers of other networks than the adapter's base have no tensors" in result.output
    made, settings = followed(out)
    check_layers(made, before, [0, 1, 2, 3, None, None])
    # ends of names would choose those layers' modules too
    assert settings["target_modules"] == [
        f"model.layers.{n}.{module}" for n in range(4) for module in sorted(MODULES)
    ]
    assert run("verify", out).exit_code == 0


def test_what_a_copy_is_multiplied_by(tmp_path: Path) -> None:
    base = changed(tmp_path, "0-3,3,3", "--scale", "down_proj=0.5")
    before = lora(range(4))
    made, _ = followed(eir.follow(adapter(tmp_path / "lora", before), base, tmp_path / "out"))
    for at, factor in ((3, 1.0), (4, 0.5), (5, 0.5)):
        for name, array in layer_of(made, at).items():
            scaled = factor if name == "mlp.down_proj.lora_B.weight" else 1.0
            assert np.array_equal(array, layer_of(before, 3)[name] * np.float32(scaled)), name
    assert run("verify", tmp_path / "out").exit_code == 0


def test_copies_that_are_zero_stay_zero(tmp_path: Path) -> None:
    base = changed(tmp_path, "0-3,3", "--zero", "down_proj,o_proj")
    before = lora(range(4))
    made, _ = followed(eir.follow(adapter(tmp_path / "lora", before), base, tmp_path / "out"))
    last = layer_of(made, 4)
    assert not last["mlp.down_proj.lora_B.weight"].any() and last["self_attn.q_proj.lora_B.weight"].any()
    assert run("verify", tmp_path / "out").exit_code == 0
    for at in range(4):
        before[f"{ROOT}model.layers.{at}.mlp.down_proj.lora_magnitude_vector"] = np.ones(8, np.float32)
    with pytest.raises(PlanError, match=r"down_proj.lora_magnitude_vector: the copy's module is zero"):
        eir.follow(adapter(tmp_path / "dora", before), base, tmp_path / "dora-out")
    odd = {f"{ROOT}model.layers.0.mlp.down_proj.c3a_kernel": np.ones(8, np.float32)}
    odd |= {f"{ROOT}model.layers.3.mlp.down_proj.c3a_kernel": np.ones(8, np.float32)}
    given = adapter(tmp_path / "c3a", odd, peft_type="C3A")
    with pytest.raises(
        PlanError, match=r"module is its source's times 0, and what c3a_kernel has to be then is not"
    ):
        eir.follow(given, base, tmp_path / "c3a-out")


@pytest.mark.parametrize(
    ("roles", "scaled"),
    [
        (
            ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
            {"lora_B.weight", "lora_magnitude_vector"},
        ),
        (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), {"hada_w1_a"}),
        (("lokr_w1", "lokr_w2_a", "lokr_w2_b"), {"lokr_w1"}),
        (("vera_lambda_b", "vera_lambda_d"), {"vera_lambda_b"}),
        (("ia3_l",), set()),
    ],
)
def test_one_factor_of_what_is_added_is_multiplied(
    roles: tuple[str, ...], scaled: set[str], tmp_path: Path
) -> None:
    base = changed(tmp_path, "0-3,3", "--scale", "o_proj=0.25")
    state = {f"{ROOT}model.layers.3.self_attn.o_proj.{role}": np.ones((8, 8), np.float32) for role in roles}
    made, _ = followed(
        eir.follow(adapter(tmp_path / "a", state, target_modules=["o_proj"]), base, tmp_path / "out")
    )
    for role in roles:
        value = made[f"{ROOT}model.layers.4.self_attn.o_proj.{role}"]
        assert np.array_equal(value, np.full((8, 8), 0.25 if role in scaled else 1, np.float32))


def test_copies_of_the_base_s_own_tensors_are_multiplied_too(tmp_path: Path) -> None:
    base = changed(tmp_path, "0-3,3", "--scale", "input_layernorm=0.5")
    state = lora([3]) | {f"{ROOT}model.layers.3.input_layernorm.weight": np.ones(8, np.float32)}
    given = adapter(
        tmp_path / "a", state, layers_to_transform=[3], modules_to_save=["model.layers.3.input_layernorm"]
    )
    made, settings = followed(eir.follow(given, base, tmp_path / "out"))
    assert made[f"{ROOT}model.layers.4.input_layernorm.weight"][0] == 0.5
    assert settings["modules_to_save"] == [f"model.layers.{n}.input_layernorm" for n in (3, 4)]
    assert settings["layers_to_transform"] == [3, 4]


def test_stacks_side_by_side(tmp_path: Path) -> None:
    """The path of a layer shows of which of them it is; a path that both could have is refused."""
    state: Tensors = {"shared.weight": llama(1)["lm_head.weight"]}
    for side in ("encoder", "decoder"):
        for name, array in llama(3).items():
            if ".layers." in name:
                state[name.replace("model", side)] = array
    settings = {"encoder_layers": 3, "decoder_layers": 3, "num_hidden_layers": 3}
    write(tmp_path / "source", state, {**config(3), **settings})
    base = tmp_path / "base"
    result = run("stretch", tmp_path / "source", "--to-stages", "decoder.layers=5", "-o", base)
    assert result.exit_code == 0, result.output
    before = lora(range(3), head="model.encoder.layers") | lora(range(3), head="model.decoder.layers")
    made, _ = followed(eir.follow(adapter(tmp_path / "a", before), base, tmp_path / "out"))
    check_layers(made, before, [0, 1, 2, 0, 1], "model.decoder.layers")
    check_layers(made, before, [0, 1, 2], "model.encoder.layers")
    bare = adapter(tmp_path / "bare", lora(range(3), head="layers"))
    with pytest.raises(SourceError, match=r"may lie in (encoder|decoder).layers or in"):
        eir.follow(bare, base, tmp_path / "no")


def test_verify_says_what_is_not_as_it_should_be(tmp_path: Path) -> None:
    base, given = changed(tmp_path, "0-3,2"), adapter(tmp_path / "lora", lora(range(4)))
    out = eir.follow(given, base, tmp_path / "out")
    result = run("verify", out)
    assert result.exit_code == 0 and "(found beside it)" in result.output, result.output
    assert run("verify", out, "--against", given).exit_code == 0
    made, _ = followed(out)
    name = f"{ROOT}model.layers.4.self_attn.q_proj.lora_A.weight"
    made[name][0] += 1
    del made[f"{ROOT}model.layers.0.self_attn.q_proj.lora_A.weight"]
    save_file(made, out / "adapter_model.safetensors")
    found = eir.verify_checkpoint(out)
    assert {(one.tensor.rpartition("layers.")[2], one.what[:10]) for one in found.differences} == {
        ("4.self_attn.q_proj.lora_A.weight", "differs, f"), ("0.self_attn.q_proj.lora_A.weight", "is missing")
    }  # fmt: skip
    with pytest.raises(SourceError, match="is not an adapter's folder"):
        eir.verify_checkpoint(out, base)


def test_what_does_not_belong_to_the_base_is_refused(tmp_path: Path) -> None:
    base = changed(tmp_path, "0-3,2")

    def said(name: str, state: Tensors, kind: type[Exception] = SourceError, **settings: Any) -> str:
        with pytest.raises(kind) as error:
            eir.follow(adapter(tmp_path / name, state, **settings), base, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "has tensors of layer 6 at" in (text := said("deep", lora([6])))
    assert "source has 4 layers there; the adapter belongs to another model" in text
    wide = {name: np.ones((2, 9) if "lora_A" in name else (9, 2), np.float32) for name in lora([1])}
    assert "do not fit model.layers.1." in said("wide", wide)
    assert "lies in no layer of source" in said("gpt2", lora([0], head="transformer.h"))
    assert "ADAPTION_PROMPT and cannot follow: its layers" in said(
        "adaption", lora([0]), PlanError, peft_type="ADAPTION_PROMPT"
    )
    assert "layer_replication repeats layers" in said("rep", lora([0]), PlanError, layer_replication=[[0, 4]])
    shared = lora([0]) | {"base_model.tinylora_v.0": np.ones(2, np.float32)}
    assert "what base_model.tinylora_v.0 is to the layers is not known" in said("tiny", shared, PlanError)
    assert "does not state its peft_type" in said("odd", lora([0]), peft_type=None)
    assert "adapter_config.json is damaged: target_modules is 3" in said("bad", lora([0]), target_modules=3)
    with pytest.raises(SourceError, match=r"has no elastic_ir.json"):
        eir.follow(adapter(tmp_path / "a", lora([0])), tmp_path / "source", tmp_path / "out")
    with pytest.raises(SourceError, match="source is a model; an adapter is a folder with"):
        eir.follow(tmp_path / "source", base, tmp_path / "out")
    with pytest.raises(SourceError, match="is no folder of a model"):
        eir.follow(tmp_path / "a", tmp_path / "a", tmp_path / "out")
    shorter = tmp_path / "shorter"
    assert run("squeeze", tmp_path / "source", "--drop", "2", "-o", shorter).exit_code == 0
    with pytest.raises(PlanError, match="none of the layers that have tensors of it is left"):
        eir.follow(adapter(tmp_path / "b", lora([2])), shorter, tmp_path / "out")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    given = adapter(tmp_path / "lora", lora(range(2)))
    for command in (
        ["inspect"],
        ["stretch", "--to-units", "4"],
        ["undo"],
        ["report", "-o", tmp_path / "r.html"],
    ):
        result = run(command[0], given, *command[1:])
        assert result.exit_code == 1 and "is an adapter of PEFT and no model" in result.output, result.output
        assert f"'elastic-ir follow {given} --base CHANGED'" in result.output


def test_prompts_concern_no_layer_but_count_them(tmp_path: Path) -> None:
    base = changed(tmp_path, "0-3,2")
    state = {"prompt_embeddings": np.ones((4, 8), np.float32)}
    given = adapter(tmp_path / "prompt", state, peft_type="PROMPT_TUNING", num_layers=4, target_modules=None)
    made, settings = followed(eir.follow(given, base, tmp_path / "out"))
    assert settings["num_layers"] == 5 and np.array_equal(
        made["prompt_embeddings"], state["prompt_embeddings"]
    )


def test_each_layer_has_the_prefix_of_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    base = changed(tmp_path, "0-3,2,0", "--zero", "o_proj")
    table = np.arange(3 * 4 * 2 * 8, dtype=np.float32).reshape(3, 64)

    def given(name: str, state: Tensors, **settings: Any) -> Path:
        more = {"num_layers": 4, "target_modules": None, **settings}
        return adapter(tmp_path / name, state, peft_type="PREFIX_TUNING", **more)

    def said(kind: type[Exception], folder: Path, onto: Path = base) -> str:
        with pytest.raises(kind) as error:
            eir.follow(folder, onto, tmp_path / "refused")
        return str(error.value)

    prefix = given("prefix", {"prompt_embeddings": table}, num_transformer_submodules=1)
    result = run("follow", prefix, "--base", base, "-o", tmp_path / "out")
    assert "PREFIX_TUNING, 1 tensors, in 6 layers" in " ".join(result.output.split()), result.output
    made, settings = followed(tmp_path / "out")
    assert settings["num_layers"] == 6
    wanted = table.reshape(3, 4, 16)[:, [0, 1, 2, 3, 2, 0]].reshape(3, 96)
    assert np.array_equal(made["prompt_embeddings"], wanted)
    assert "equal" in run("verify", tmp_path / "out").output
    made["prompt_embeddings"] = made["prompt_embeddings"] + np.eye(3, 96, 90, np.float32)
    save_file(made, tmp_path / "out" / "adapter_model.safetensors", {"format": "pt"})
    assert run("verify", tmp_path / "out").exit_code == 1
    assert "which share the prefixes" in said(
        PlanError, given("both", {"prompt_embeddings": table}, num_transformer_submodules=2)
    )
    assert "num_layers is 5, which counts none of the stacks" in said(
        PlanError, given("five", {"prompt_embeddings": table}, num_layers=5)
    )
    assert "prompt_embeddings is [3, 63], and 4 layers take a key and a value" in said(
        SourceError, given("cut", {"prompt_embeddings": table[:, 1:].copy()})
    )
    assert "prompt_embeddings is missing" in said(SourceError, given("none", {"prefix_task_cols": table}))
    other = write(tmp_path / "other", llama(4), config(4))
    mixed = tmp_path / "mixed"
    assert (
        run(
            "stretch", tmp_path / "source", "--plan", "0-3,b/1", "--with", f"b={other}", "-o", mixed
        ).exit_code
        == 0
    )
    assert "layers of another network have no prefix" in said(PlanError, prefix, mixed)


def test_the_base_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record and the headers show all that there is to know."""
    base = changed(tmp_path, "0-3,2")
    monkeypatch.setattr("elastic_ir.checkpoints.read.learn_lists", lambda graph: pytest.fail("it was asked"))
    eir.follow(adapter(tmp_path / "lora", lora(range(4))), base, tmp_path / "out")
    check_layers(followed(tmp_path / "out")[0], lora(range(4)), [0, 1, 2, 3, 2])


def test_the_command_names_its_output_and_replaces_on_request(tmp_path: Path) -> None:
    base, given = changed(tmp_path, "0-3,2"), adapter(tmp_path / "lora", lora(range(4)))
    result = run("follow", given, "--base", base, "--dry-run", "--json")
    data = json.loads(result.output)
    assert data["would_write"] == str(tmp_path / "lora-5") and data["wrote"] == [] and data["tensors"] == 20
    assert data["plan"] == {"model.layers": "0-3,2"} and not (tmp_path / "lora-5").exists()
    assert run("follow", given, "--base", base).exit_code == 0
    assert "exists already and is not an empty folder" in run("follow", given, "--base", base).output
    assert run("follow", given, "--base", base, "--force").exit_code == 0
    assert (
        "is the adapter, which would be written over"
        in run("follow", given, "--base", base, "-o", given).output
    )


def test_of_models_of_one_name_the_adapter_s_own_is_taken(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "llama", llama(4), config(4))
    then, last = tmp_path / "b" / "llama", tmp_path / "c" / "llama"
    then.parent.mkdir()
    last.parent.mkdir()
    assert run("stretch", first, "--plan", "0-3,2-3", "-o", then).exit_code == 0
    assert run("stretch", then, "--plan", "0,0,1-5", "-o", last).exit_code == 0
    before = lora(range(4))
    one = adapter(tmp_path / "one", before, base_model_name_or_path=str(first))
    eir.follow(one, last, tmp_path / "made")
    check_layers(followed(tmp_path / "made")[0], before, [0, 0, 1, 2, 3, 2, 3])
    other = adapter(tmp_path / "other", lora(range(6)), base_model_name_or_path=str(then))
    eir.follow(other, last, tmp_path / "more")
    check_layers(followed(tmp_path / "more")[0], lora(range(6)), [0, 0, 1, 2, 3, 4, 5])
    unclear = adapter(tmp_path / "unclear", before, base_model_name_or_path="somewhere/llama")
    with pytest.raises(SourceError, match="several of them are called llama, and it is not known"):
        eir.follow(unclear, last, tmp_path / "never")


def test_an_expression_for_the_layers_does_not_leave_their_numbers(tmp_path: Path) -> None:
    out = changed(tmp_path, "0,1,1,2,3")
    one = adapter(tmp_path / "one", lora([1, 2]), layers_to_transform=[1, 2], layers_pattern="(layers|h)")
    eir.follow(one, out, tmp_path / "made")
    made, settings = followed(tmp_path / "made")
    check_layers(made, lora([1, 2]), [None, 1, 1, 2, None])
    modules = {name.removeprefix(ROOT).rpartition(".lora_")[0] for name in made}
    assert settings["layers_to_transform"] is None and set(settings["target_modules"]) == modules


def test_an_adapter_within_another_s_folder_is_left_out_whole(tmp_path: Path) -> None:
    out = changed(tmp_path, "0-3,3")
    one = adapter(tmp_path / "one", lora(range(4)))
    adapter(one / "second", lora(range(4)))
    result = run("follow", one, "--base", out, "-o", tmp_path / "made")
    assert result.exit_code == 0 and "second/adapter_config.json" in result.output
    assert not (tmp_path / "made" / "second").exists()


def test_a_list_of_the_base_that_ends_alike_is_not_taken_for_the_changed_one() -> None:
    stack = Stack("down.1.blocks", "", 0, 2, (0, 1, 1))
    before = {f"{head}.{layer}.q.weight" for head in ("down.1.blocks", "mid.0.blocks") for layer in range(2)}
    change = Change("unet", (stack,), frozenset(before), {}, {})
    names = [f"{ROOT}{head}.1.q.lora_A.weight" for head in ("down.1.blocks", "mid.0.blocks")]
    places = places_in(names, change, "lora")
    assert places.layers == {(0, 1): {"q.lora_A.weight": names[0]}} and places.beside == names[1:]
