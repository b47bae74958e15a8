"""Folders are compared with the network that transformers builds, before they get their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.libraries.of_transformers import Transformers
from elastic_ir.checkpoints.oracle import comparison
from elastic_ir.checkpoints.oracle.comparison import Compared, asked, judged
from elastic_ir.checkpoints.oracle.judgement import differences, origins
from elastic_ir.checkpoints.oracle.process import answer
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.write import plan_checkpoint, save_checkpoint
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import EmitError, PlanError
from tests.checkpoints.folders import config, llama, run, write
from tests.networks.transformers_families import FAMILIES, SMALL, make

CLEAN: dict[str, Any] = {
    "class": "Net",
    "library": "transformers",
    "file": "config.json",
    "missing": [],
    "unexpected": [],
    "silent": {"missing": [], "unexpected": []},
    "shapes": [],
    "failed": [],
}


def compared(graph: eir.Graph) -> Compared:
    """What the comparison says, in this process."""
    plan = plan_checkpoint(graph)
    shapes = {n: d.shape for shard in plan.shards.values() for n, d in shard.items()}
    proposed = plan.doubt is None
    data = asked((plan.source.config, plan.source.shapes), (plan.config, shapes), plan.stacks, proposed)
    return judged(answer(json.loads(json.dumps(data))), proposed)


def stretched(folder: Path, **how: Any) -> eir.Graph:
    """The folder's graph with every stage twice as long, or as it is said."""
    graph = eir.load(folder, headers_only=True)
    if not set(how) - {"unit"}:
        how["to_stages"] = {stage.name: 2 * len(stage) for stage in graph.stages}
    return eir.stretch(graph, **how)


def wav2vec2() -> Any:
    """A network with one weight for each layer, and one for their input, outside of the layers."""
    settings = t.Wav2Vec2Config(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=4, conv_dim=(16,),
        conv_stride=(5,), conv_kernel=(10,), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, use_weighted_layer_sum=True, vocab_size=20,
    )  # fmt: skip
    return t.Wav2Vec2ForSequenceClassification(settings)


def ernie() -> Any:
    """A network whose configuration names the last layer of experts by its number."""
    settings = t.Ernie4_5_MoeConfig(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=120, moe_num_experts=4, moe_k=2, moe_layer_start_index=1,
        moe_layer_end_index=5, moe_layer_interval=1, pad_token_id=0,
    )  # fmt: skip
    return t.Ernie4_5_MoeForCausalLM(settings)


def gemma3n() -> Any:
    """A network whose last layers, counted from the end, have the keys and values of earlier ones."""
    settings = t.Gemma3nTextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=120, vocab_size_per_layer_input=120, hidden_size_per_layer_input=8, laurel_rank=4,
        num_kv_shared_layers=2, activation_sparsity_pattern=[0.0] * 6,
        layer_types=["sliding_attention", "full_attention"] * 3,
    )  # fmt: skip
    return t.Gemma3nForCausalLM(settings)


def two_towers() -> Any:
    """A network with two stacks of equal length, each counted in a table of its own."""
    tower: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3,
    }  # fmt: skip
    text = {**tower, "vocab_size": 120, "max_position_embeddings": 20}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    return t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


# -- what fits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.everyday(2)
def test_families_fit(name: str, tmp_path: Path) -> None:
    """Tied, fused, renamed and left-out names included; every name is vouched for."""
    model = make(name)
    model.save_pretrained(tmp_path / "source")
    graph = stretched(tmp_path / "source", unit=2 if name == "swin" else None)
    assert compared(graph) == Compared(type(model).__name__)


@pytest.mark.parametrize(
    "way", ["base model", "head", "no architectures", "sharded", "bin", "tied", "buffers"]
)
def test_forms_of_folders_fit(way: str, tmp_path: Path) -> None:
    """Forms that transformers loads: keys of the base model alone, a missing head, old buffers of each layer."""
    folder = tmp_path / "source"
    if way == "base model":  # the prefix of the whole network's class is not there
        t.BertModel(t.BertConfig(num_hidden_layers=3, **SMALL)).save_pretrained(folder)
        _set(folder, architectures=["BertForMaskedLM"])
    elif way == "head":  # the base model's class meets the whole network's names
        t.BertForMaskedLM(t.BertConfig(num_hidden_layers=3, **SMALL)).save_pretrained(folder)
        _set(folder, architectures=["BertModel"])
    else:
        state = llama()
        more: dict[str, Any] = {}
        if way == "tied":
            del state["lm_head.weight"]
            more["tie_word_embeddings"] = True
        if way == "buffers":
            state |= {
                f"model.layers.{i}.self_attn.rotary_emb.inv_freq": state["model.norm.weight"]
                for i in range(4)
            }
        write(folder, state, config(4, **more), shards=3 if way == "sharded" else 1)
        if way == "no architectures":
            _set(folder, architectures=None)
        if way == "bin":
            torch.save({n: torch.from_numpy(a) for n, a in state.items()}, folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
    found = compared(stretched(folder))
    kinds = {"base model": "BertForMaskedLM", "head": "BertModel", "no architectures": "LlamaModel"}
    assert found.kind == kinds.get(way, "LlamaForCausalLM")


def _set(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_what_the_source_lacks_is_not_the_changes_fault(tmp_path: Path) -> None:
    """As in weights that are packed: a layer's copy lacks what the layer lacks, and has what it has."""
    state = llama()
    for name in [name for name in state if "up_proj" in name]:
        state[name.replace("weight", "qweight")] = state.pop(name)
    folder = write(tmp_path / "source", state, config(4))
    found = compared(stretched(folder, plan="0-3,2"))
    layer = "model.layers.{}.mlp.up_proj.{}"
    wanted = {layer.format(at, name) for at in range(5) for name in ("weight", "qweight")}
    assert found == Compared("LlamaForCausalLM", doubtful=frozenset(wanted))
    assert "but 10 that do not fit the source's either, such as model.layers.0.mlp" in str(found)


# -- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "change", "said"),
    [
        (
            wav2vec2,
            {"plan": "0-3,3", "keep_beside": "layer_weights"},
            r"layer_weights would be \[5\] and has to be \[6\]",
        ),
        (
            wav2vec2,
            {"plan": "0,1,2", "keep_beside": "layer_weights"},
            r"layer_weights would be \[5\] and has to be \[4\]",
        ),
    ],
)
def test_what_the_network_would_not_take(network: Any, change: Any, said: str, tmp_path: Path) -> None:
    network().save_pretrained(tmp_path / "source")
    graph = stretched(tmp_path / "source", **change)
    with pytest.raises(EmitError, match=said) as failed:
        compared(graph)
    assert "another plan may fit, --no-check writes it all the same" in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("network", "change", "entries"),
    [
        (ernie, {"plan": "0-5,4,5", "unit": 1}, {"num_hidden_layers": 8, "moe_layer_end_index": 7}),
        (ernie, {"plan": "0-3,1,1-5", "unit": 1}, {"num_hidden_layers": 10, "moe_layer_end_index": 9}),
    ],
)
def test_entries_are_found_by_experiment(
    network: Any, change: Any, entries: dict[str, Any], tmp_path: Path
) -> None:
    network().save_pretrained(tmp_path / "source")
    found = compared(stretched(tmp_path / "source", **change))
    assert found.config is not None
    for place, value in entries.items():
        held: Any = found.config
        for key in place.split("."):
            held = held[key]
        assert held == value


def test_a_configuration_that_the_class_refuses(tmp_path: Path) -> None:
    """The source's could be built: so it is the change that made it one that cannot."""
    found = {
        "class": "Net",
        "library": "transformers",
        "file": "config.json",
        "fails": "config.json: its configuration cannot be made (ValueError: 5 is not 4)",
    }
    with pytest.raises(EmitError, match=r"builds Net from the source's configuration, but not .* 5 is not 4"):
        judged({**found, "differences": [], "doubtful": []})


STACK = Stack("model.layers", "", 0, 4, (0, 1, 2, 1, 3))


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ({}, {"missing": ["a"]}, "a would be missing"),
        ({"missing": ["a"]}, {"missing": ["a"]}, None),
        ({"silent": {"missing": ["a"], "unexpected": []}}, {"unexpected": ["a"]}, None),
        ({}, {"silent": {"missing": ["a"], "unexpected": []}}, "a would be missing"),
        ({}, {"silent": {"missing": [], "unexpected": ["a"]}}, "a has no place in it"),
        ({"missing": ["a"]}, {"silent": {"missing": ["a"], "unexpected": []}}, None),
        ({"unexpected": ["a"]}, {"missing": ["a"]}, "a would be missing"),
        ({"missing": ["model.layers.1.w"]}, {"missing": ["model.layers.1.w", "model.layers.3.w"]}, None),
        ({"missing": ["model.layers.3.w"]}, {"missing": ["model.layers.3.w"]}, "layers.3.w would be missing"),
        ({"unexpected": ["model.layers.2.w"]}, {"unexpected": ["model.layers.4.w"]}, "layers.4.w has no place in it"),
        ({"shapes": [["w", [4], [5]]]}, {"shapes": [["w", [4], [5]]]}, None),
        ({"shapes": [["w", [4], [5]]]}, {"shapes": [["w", [4], [6]]]}, r"w would be \[4\] and has to be \[6\]"),
        ({}, {"failed": ["model.layers.0.w"]}, "layers.0.w cannot be put together"),
        ({"failed": ["model.layers.0.w"]}, {"failed": ["model.layers.0.w"]}, None),
        ({}, {"missing": list("abcde")}, "a would be missing; b would be .*; c would be missing, and 2 more"),
    ],
)  # fmt: skip
def test_only_new_differences_count(source: dict[str, Any], target: dict[str, Any], said: str | None) -> None:
    new = differences({**CLEAN, **source}, {**CLEAN, **target}, [STACK])
    if said is None:
        assert not new
        return
    with pytest.raises(EmitError, match=said):
        judged({**CLEAN, "differences": new, "doubtful": []})


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2), st.integers(0, 1))
def test_a_layers_name_leads_back_along_the_plan(order: list[int], tail: int, base: int) -> None:
    stack = Stack("m.layers", "", base, 6, tuple(order), tail=tail)
    if not stack.changed:
        return
    sources = [*order, *range(6, 6 + tail)]
    for at, source in enumerate(sources):
        assert origins(f"m.layers.{at + base}.w", [stack]) == {f"m.layers.{source + base}.w"}
        # under another name it may be that layer, or none of the stack
        other = f"x.blocks.{at + base}.w"
        assert origins(other, [stack]) == {other, f"x.blocks.{source + base}.w"}
    assert origins("m.norm.w", [stack]) == {"m.norm.w"}


# -- what cannot be compared -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"model_type": "flux", "architectures": ["FluxModel"]}, "names no model_type that transformers has"),
        ({"model_type": None, "architectures": None}, "names no"),
        ({"model_type": None, "architectures": ["os.system"]}, "names no"),
        ({"hidden_size": "wide"}, "cannot be made"),
        ({"checkpoint_path": "/etc/passwd"}, "a path"),
    ],
)
def test_a_class_that_cannot_be_built(entries: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "source", llama(), config(4))
    _set(folder, **entries)
    found = compared(stretched(folder))
    assert found.kind is None
    assert why in str(found)
    assert str(found).startswith("not compared with the network: config.json")


def test_entries_of_packing_and_of_kernels_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", llama(), config(4))
    _set(
        folder,
        quantization_config={"quant_method": "gptq", "bits": 4},
        _attn_implementation="flash_attention_2",
        auto_map={"AutoModel": "code.Model"},
        dtype="bfloat16",
    )
    assert compared(stretched(folder)) == Compared("LlamaForCausalLM")


@pytest.mark.slow
def test_what_no_configuration_states(tmp_path: Path) -> None:
    """The reason by the names of entries, and what the network would say to the nearest that was tried."""
    entries = config(4)
    del entries["num_hidden_layers"]
    folder = write(tmp_path / "source", llama(), entries)
    graph = stretched(folder, to_units=6)
    with pytest.raises(PlanError, match=r"has no entry that counts the 4 layers at model.layers") as failed:
        save_checkpoint(graph, tmp_path / "out")
    assert "with the nearest, the layers of model.layers are not found in LlamaForCausalLM" in str(
        failed.value
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_transformers_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transformers, "imports", "no_such_library")
    told: list[Compared] = []
    folder = write(tmp_path / "source", llama(), config(4))
    save_checkpoint(stretched(folder), tmp_path / "out", tell_compared=told.append)
    (found,) = told
    why = (
        "building it needs no_such_library, which cannot be imported (No module named 'no_such_library'); "
        "pip install 'elastic-ir[transformers]'"
    )
    assert str(found) == f"not compared with the network: {why}"


def test_a_version_that_loads_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(t.PreTrainedModel, "_load_pretrained_model")
    found = compared(stretched(write(tmp_path / "source", llama(), config(4))))
    assert found.kind is None
    assert "transformers cannot be asked (AttributeError: " in str(found)


def test_a_process_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_MODULE", "elastic_ir.no_such_module")
    told: list[Compared] = []
    folder = write(tmp_path / "source", llama(), config(4))
    save_checkpoint(stretched(folder), tmp_path / "out", tell_compared=told.append)
    assert "transformers could not be asked: " in str(told[0])
    assert "no_such_module" in str(told[0])


def test_what_no_network_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor with an entry for each layer, of a network that cannot be built, is refused before a byte is copied."""
    monkeypatch.setattr(Transformers, "imports", "no_such_library")
    folder = tmp_path / "source"
    state = llama()
    state["model.layer_mix"] = state["model.norm.weight"][:5]  # of four layers and their input
    write(folder, state, config(4))
    graph = stretched(folder, to_units=6)
    told: list[tuple[int, int]] = []
    with pytest.raises(
        PlanError, match=r"layer_mix \[5\] beside it has 5 entries .* --keep-beside model.layer_mix"
    ):
        save_checkpoint(graph, tmp_path / "out", tell=lambda *now: told.append(now))
    assert not told
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    save_checkpoint(graph, tmp_path / "unchecked", check=False)
    save_checkpoint(stretched(folder, to_units=6, keep_beside="layer_mix"), tmp_path / "kept")
    assert (tmp_path / "kept" / "config.json").exists()


def test_a_network_vouches_for_what_it_takes() -> None:
    beside = {"model.mix": "it seems to be indexed", "heads": "they seem to be"}
    Compared("Net").prove(beside)
    for doubted in ("model.mix", "net.model.mix", "heads.0.weight", "net.heads.1.bias"):
        with pytest.raises(PlanError, match="seem"):
            Compared("Net", doubtful=frozenset([doubted])).prove(beside)
    Compared("Net", doubtful=frozenset(["model.mixer", "overheads.0.weight"])).prove(beside)
    with pytest.raises(PlanError, match="it seems to be indexed"):
        Compared(None, "why").prove(beside)


# -- the whole way, in a process of its own ----------------------------------------------------------------------------


def checked(*arguments: object) -> Result:
    return CliRunner().invoke(elastic_ir, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_summary_says_what_it_was_compared_with(tmp_path: Path) -> None:
    folder, out = write(tmp_path / "source", llama(), config(4), shards=3), tmp_path / "out"
    done = checked("stretch", folder, "--to-units", 6, "-o", out)
    assert done.exit_code == 0, done.output
    assert (
        "compared:   every name, shape and kind of layer with LlamaForCausalLM as config.json has it\nwrote: "
        in done.output
    )
    done = run("squeeze", folder, "--to-units", 2, "-o", tmp_path / "other")
    assert "compared:   not compared with the network: --no-check\nwrote: " in done.output


@pytest.mark.slow
def test_the_summary_says_what_was_found(tmp_path: Path) -> None:
    ernie().save_pretrained(tmp_path / "source")
    done = checked("stretch", tmp_path / "source", "--plan", "0-5,4,5", "--unit", 1, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "found:      config.json: moe_layer_end_index = 7, by building the network\n" in done.output
    assert "compared:   every name, shape and kind of layer with Ernie4_5_MoeForCausalLM as" in done.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["moe_layer_end_index"] == 7
    kind: Any = t.Ernie4_5_MoeForCausalLM
    loaded, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded.config.num_hidden_layers == 8
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.slow
def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    folder, out = tmp_path / "source", tmp_path / "out"
    wav2vec2().save_pretrained(folder)
    done = checked("squeeze", folder, "--drop", 2, "--keep-beside", "layer_weights", "-o", out)
    assert done.exit_code == 1
    error = done.output.splitlines()[-1]
    assert error.startswith("error: Wav2Vec2ForSequenceClassification of the new config.json would not load")
    assert "layer_weights would be [5] and has to be [4]" in error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    eir.save(eir.squeeze(eir.load(folder, headers_only=True), drop=[2]), out, check=False)
    assert (out / "config.json").exists()


@pytest.mark.slow
def test_a_wrong_tensor_in_the_source_alone_is_written(tmp_path: Path) -> None:
    """A source that would not load itself: the change adds nothing to that, and the summary tells it."""
    folder = write(tmp_path / "source", llama(), config(4))
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"][:4]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    found = compared(stretched(folder))
    assert found.doubtful == {"model.norm.weight"}
