"""Recipes of slices as mergekit reads them: bytes against torch's, against mergekit itself, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.names import stands_behind
from elastic_ir.checkpoints.record import Origin, read_record
from elastic_ir.errors import ElasticError
from tests.checkpoints.folders import config, llama, run

State = dict[str, torch.Tensor]
MERGEKIT = os.environ.get("MERGEKIT") or shutil.which("mergekit-yaml")


def state(layers: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> State:
    return {n: torch.from_numpy(a.astype("float32")).to(dtype) for n, a in llama(layers, seed=seed).items()}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two folders, ``one`` of 4 and ``two`` of 6 layers; the folder that holds both."""
    for name, layers, seed in (("one", 4, 0), ("two", 6, 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config(layers)))
        save_file(state(layers, seed), tmp_path / name / "model.safetensors", {"format": "pt"})
    return tmp_path


TWO = """\
slices:
  - sources: [{model: one, layer_range: [0, 3]}]
  - sources: [{model: two, layer_range: [2, 6]}]
merge_method: passthrough
dtype: bfloat16
"""
SCALED = """\
merge_method: passthrough
parameters: {scale: [{filter: norm, value: 1.1}]}
slices:
  - sources: [{model: one, layer_range: [0, 2], parameters: {scale: {filter: embed, value: 3}}}]
  - parameters: {scale: 0.3}
    sources:
      - model: two
        layer_range: [2, 5]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: [0.1, 0.7]}
            - {filter: up_proj, value: 1.0}
  - sources: [{model: one, layer_range: [3, 4]}]
"""


def as_bytes(tensors: State) -> dict[str, bytes]:
    return {n: t.contiguous().view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


def layers_of(source: State, layer: int, at: int, factor: Any = lambda name: 1.0) -> State:
    head = f"model.layers.{layer}."
    return {
        f"model.layers.{at}.{n[len(head) :]}": t * factor(n) for n, t in source.items() if n.startswith(head)
    }


def test_two_models_in_a_row(models: Path) -> None:
    (models / "merge.yaml").write_text(TWO)
    done = run("stretch", models / "merge.yaml", "-o", models / "out")
    assert done.exit_code == 0, done.output
    assert "model.layers  4 -> 7  0-2,two/2-5" in done.output
    one, two = state(4, 0), state(6, 1)
    wanted = {"model.embed_tokens.weight": one["model.embed_tokens.weight"]}
    wanted |= {
        name: two[name] for name in ("model.norm.weight", "lm_head.weight")
    }  # behind the last slice's layers
    for at, (source, layer) in enumerate(
        [(one, 0), (one, 1), (one, 2), (two, 2), (two, 3), (two, 4), (two, 5)]
    ):
        wanted |= layers_of(source, layer, at)
    made = load_file(models / "out" / "model.safetensors")
    assert as_bytes(made) == as_bytes(wanted)
    assert json.loads((models / "out" / "config.json").read_text())["num_hidden_layers"] == 7
    (step,) = read_record(models / "out")
    assert step.sources == ("one", "two") and step.plan == {"model.layers": "0-2,two/2-5"}
    assert step.origin("lm_head.weight") == Origin("lm_head.weight", 1)
    assert not eir.verify_checkpoint(models / "out", check=False).differences


def test_factors_by_filter_along_the_slice_and_by_level(models: Path) -> None:
    (models / "merge.yml").write_text(SCALED)
    eir.save(eir.merge(models / "merge.yml"), models / "out", check=False)
    one, two = state(4, 0), state(6, 1)

    def norms(name: str) -> float:
        return 1.1 if "norm" in name else 1.0

    wanted = {n: one[n] * norms(n) for n in ("model.norm.weight", "lm_head.weight")}
    wanted["model.embed_tokens.weight"] = one["model.embed_tokens.weight"] * 3
    for at, layer in ((0, 0), (1, 1), (5, 3)):
        wanted |= layers_of(one, layer, at, norms)
    for at, layer in enumerate([2, 3, 4]):
        factors = {"o_proj": 0.0, "down_proj": [0.1, 0.5 * 0.1 + 0.5 * 0.7, 0.7][at], "up_proj": 1.0}

        def factor(name: str, factors: dict[str, float] = factors) -> float:
            return next((number for part, number in factors.items() if part in name), 0.3)

        wanted |= layers_of(two, layer, at + 2, factor)
    made = load_file(models / "out" / "model.safetensors")
    assert as_bytes(made) == as_bytes(wanted)
    (step,) = read_record(models / "out")
    assert step.origin("model.layers.2.mlp.up_proj.weight") == Origin("model.layers.2.mlp.up_proj.weight", 1)
    assert step.origin("model.layers.2.mlp.gate_proj.weight").scale == 0.3
    assert not eir.verify_checkpoint(models / "out", check=False).differences


def test_one_whole_model_and_the_other_command(models: Path) -> None:
    (models / "merge.yaml").write_text(
        "models: [{model: one, parameters: {scale: 0.3}}]\nmerge_method: passthrough\n"
    )
    assert run("squeeze", models / "merge.yaml", "-o", models / "out").exit_code == 0
    made = load_file(models / "out" / "model.safetensors")
    assert as_bytes(made) == as_bytes({name: tensor * 0.3 for name, tensor in state(4, 0).items()})


def test_what_a_recipe_says_is_not_said_twice(models: Path) -> None:
    (models / "merge.yaml").write_text(TWO)
    for option in (("--to-units", 5), ("--with", "b=one"), ("--zero", "o_proj"), ("--unit", 2)):
        done = run("stretch", models / "merge.yaml", *option, "-o", models / "out")
        assert done.exit_code == 2 and f"leave out {option[0]}" in done.output
    assert "state where the result goes, by -o OUT" in run("stretch", models / "merge.yaml").output


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("merge_method: passthrough", "merge_method: slerp",
         "line 4: the merge method 'slerp' computes new weights; only passthrough is read"),
        ("merge_method: passthrough\n", "", "line 1: the merge_method is missing"),
        ("dtype: bfloat16", "dtype: float16", "line 5: lm_head.weight of one is bfloat16, and is not converted"),
        ("dtype: bfloat16", "tokenizer_source: union", "line 5: 'tokenizer_source' is not read here"),
        ("dtype: bfloat16", "base_model: two", "line 5: the base model two is not the first slice's"),
        ("dtype: bfloat16", "parameters: {weight: 1}", "line 5: 'weight' is not read here; the parameters of"),
        ("dtype: bfloat16", "models: []", "line 1: write one of slices, models and modules"),
        ("[0, 3]}]", "[0, 3]}, {model: two, layer_range: [0, 3]}]", "line 2: a slice of several sources would have"),
        ("[0, 3]", "[0, 5]", "line 2: one has 4 layers at model.layers, and the range goes to 5"),
        ("[0, 3]", "[3, 3]", "line 2: the layer_range [3, 3] holds no layer"),
        ("[0, 3]", "[0]", "line 2: a layer_range is two numbers"),
        ("[0, 3]}", "[0, 3], parameters: {scale: x}}", "line 2: a scale is a number, or a list of numbers"),
        ("[0, 3]}", "[0, 3], parameters: {scale: [{filter: a}]}}", "line 2: a scale has a value"),
        ("model: one", "model: gone", "line 2: there is no folder gone; models are read from the disk, fetch it first"),
        ("model: one", "model: one+lora", "a LoRA has to be merged into its model first"),
        (", layer_range: [2, 6]", "", "line 3: a source has a layer_range"),
        ("dtype: bfloat16", "parameters: {scale: 0.5", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_refused_by_its_line(models: Path, before: str, after: str, message: str) -> None:
    assert before in TWO
    (models / "merge.yaml").write_text(TWO.replace(before, after))
    with pytest.raises(ElasticError) as caught:
        eir.merge(models / "merge.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("merge.yaml ")


def test_ends_of_models_that_differ(models: Path) -> None:
    wide = {n: torch.zeros(40, 8, dtype=t.dtype) if "lm_head" in n else t for n, t in state(6, 1).items()}
    save_file(wide, models / "two" / "model.safetensors")
    (models / "merge.yaml").write_text(TWO)
    with pytest.raises(
        ElasticError, match=r"line 3: lm_head\.weight is \[40, 8\] bfloat16 in two, and \[32, 8\]"
    ):
        eir.merge(models / "merge.yaml")
    del wide["lm_head.weight"]
    save_file(wide, models / "two" / "model.safetensors")
    with pytest.raises(ElasticError, match=r"of the first and the last slice's models only one has lm_head"):
        eir.merge(models / "merge.yaml")


def test_modules_by_the_names_of_stacks(tmp_path: Path) -> None:
    whole = {"shared.weight": torch.zeros(4, 8)}
    for side in ("encoder", "decoder"):
        for name, tensor in state(3, len(side), torch.float32).items():
            if "layers" in name and (side == "encoder" or "norm" not in name):
                whole[name.replace("model.layers", f"{side}.block")] = tensor
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"num_layers": 3, "num_decoder_layers": 3}))
    save_file(whole, tmp_path / "t5" / "model.safetensors")
    text = """\
modules:
  encoder:
    slices:
      - sources: [{model: t5, layer_range: [0, 3]}]
      - sources: [{model: t5, layer_range: [1, 3]}]
  decoder: {models: [{model: t5}]}
merge_method: passthrough
"""
    (tmp_path / "merge.yaml").write_text(text)
    eir.save(eir.merge(tmp_path / "merge.yaml"), tmp_path / "out", check=False)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["num_layers"], told["num_decoder_layers"]) == (5, 3)
    for bad in (text.replace("decoder", "vision"), text.replace("  decoder: {models: [{model: t5}]}\n", "")):
        (tmp_path / "merge.yaml").write_text(bad)
        with pytest.raises(ElasticError, match="do not tell the stacks of layers apart; call"):
            eir.merge(tmp_path / "merge.yaml")


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("model.embed_tokens.weight", False), ("model.norm.weight", True), ("lm_head.weight", True),
        ("transformer.wte.weight", False), ("transformer.ln_f.bias", True), ("embed_out.weight", True),
        ("bert.embeddings.LayerNorm.weight", False), ("bert.pooler.dense.weight", True), ("score.weight", True),
        ("transformer.word_embeddings_layernorm.weight", False), ("model.strange.weight", None),
    ],
)  # fmt: skip
def test_what_stands_before_and_behind(name: str, behind: bool | None) -> None:
    assert stands_behind(name) is behind


@pytest.mark.slow
@pytest.mark.skipif(not MERGEKIT, reason="mergekit-yaml is not on PATH, and MERGEKIT does not name it")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2"])
def test_against_mergekit(family: str, dtype: str, tmp_path: Path) -> None:
    import transformers as t

    narrow: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 50,
    }
    kinds: dict[str, Any] = {
        "llama": (t.LlamaConfig, t.LlamaForCausalLM), "mistral": (t.MistralConfig, t.MistralForCausalLM),
        "qwen2": (t.Qwen2Config, t.Qwen2ForCausalLM), "gpt2": (t.GPT2Config, t.GPT2LMHeadModel),
    }  # fmt: skip
    made_config, made_model = kinds[family]
    gpt2 = {"n_embd": 32, "n_head": 4, "vocab_size": 50, "n_positions": 64}
    for name, layers in (("one", 4), ("two", 6)):
        torch.manual_seed(layers)
        sizes = {**gpt2, "n_layer": layers} if family == "gpt2" else {**narrow, "num_hidden_layers": layers}
        model = made_model(made_config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model.to(getattr(torch, dtype)).save_pretrained(tmp_path / name)
    parts = {
        "o_proj": "attn.c_proj",
        "down_proj": "mlp.c_proj",
        "up_proj": "c_fc",
        "norm": "ln_",
        "embed": "wte",
    }
    for number, text in enumerate((TWO.replace("bfloat16", dtype), SCALED)):
        for part, other in parts.items() if family == "gpt2" else ():
            text = text.replace(f"filter: {part}", f"filter: {other}")
        for name in ("one", "two"):  # whole paths, as mergekit asks the hub about others
            text = text.replace(f"model: {name}", f"model: {tmp_path / name}")
        recipe = tmp_path / f"merge{number}.yaml"
        recipe.write_text(text)
        theirs, ours = tmp_path / f"theirs{number}", tmp_path / f"ours{number}"
        command = [str(MERGEKIT), str(recipe), str(theirs)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        # the tensors are whole before config.json is made, whose lists of layers mergekit leaves at the old depth, so
        # that its transformers may refuse to write it (Qwen2)
        assert done.returncode == 0 or "layer_types" in done.stderr, done.stderr[-2000:]
        assert list(theirs.glob("*.safetensors")), done.stderr[-2000:]
        eir.save(eir.merge(recipe), ours, check=False)
        head = "transformer."  # which GPT-2 may be saved with and without
        state, wanted = (
            {
                name.removeprefix(head): raw
                for file in folder.glob("*.safetensors")
                for name, raw in as_bytes(load_file(file)).items()
            }
            for folder in (ours, theirs)
        )  # fmt: skip
        assert state == wanted


def test_models_whose_folders_are_called_alike(tmp_path: Path) -> None:
    """Names in plans are made until no two are equal, the first model's folder's included."""
    states = [state(4, seed) for seed in range(3)]
    for place, held in zip(("p/model-2", "q/model-2", "r/model-3"), states, strict=True):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        save_file(held, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config(4)))
    rows = [
        f"  - sources: [{{model: {place}, layer_range: [1, 3]}}]"
        for place in ("p/model-2", "q/model-2", "r/model-3")
    ]
    (tmp_path / "merge.yaml").write_text("\n".join(["slices:", *rows, "merge_method: passthrough"]))
    eir.save(eir.merge(tmp_path / "merge.yaml"), tmp_path / "out", check=False)
    wanted = {n: states[0][n] for n in states[0] if "embed" in n}
    wanted |= {n: states[2][n] for n in ("model.norm.weight", "lm_head.weight")}
    for at in range(6):
        wanted |= layers_of(states[at // 2], 1 + at % 2, at)
    assert as_bytes(load_file(tmp_path / "out" / "model.safetensors")) == as_bytes(wanted)
    folders = [tmp_path / place for place in ("p/model-2", "q/model-2", "r/model-3")]
    assert not eir.verify_checkpoint(tmp_path / "out", folders, check=False).differences
    with pytest.raises(eir.SourceError, match="made from two folders that are called 'model-2'"):
        eir.verify_checkpoint(tmp_path / "out", check=False)
