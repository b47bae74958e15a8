"""The metadata of GGUF files follows the layers: counts, lists, rules by number, and what no entry could state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import elastic_ir as eir
from elastic_ir.errors import PlanError, SourceError
from tests.networks.gguf_files import (
    WIDTH,
    layer,
    layers_of,
    llama,
    llama_metadata,
    llama_tensors,
    read_back,
    write,
)

Shapes = dict[str, tuple[int, ...]]

#: What makes a layer one of another kind.
EXPERTS: Shapes = {
    "ffn_gate_inp.weight": (4, WIDTH), "ffn_gate_exps.weight": (4, 32, WIDTH), "ffn_up_exps.weight": (4, 32, WIDTH),
    "ffn_down_exps.weight": (4, WIDTH, 32),
}  # fmt: skip
RECURRENT: Shapes = {
    "attn_norm.weight": (WIDTH,), "ssm_in.weight": (128, WIDTH), "ssm_conv1d.weight": (128, 4),
    "ssm_out.weight": (WIDTH, WIDTH), "ssm_a": (4,), "ssm_d": (4,),
}  # fmt: skip


def expert_layer() -> Shapes:
    dense = {name: shape for name, shape in layer().items() if not name.startswith("ffn_")}
    return {**dense, "ffn_norm.weight": (WIDTH,), **EXPERTS}


def hybrid(layers: list[Shapes]) -> Shapes:
    """A network of these layers."""
    found = {"token_embd.weight": (40, WIDTH), "output_norm.weight": (WIDTH,)}
    for number, held in enumerate(layers):
        found |= {f"blk.{number}.{name}": shape for name, shape in held.items()}
    return found


def stated(path: Path, *keys: str) -> dict[str, Any]:
    fields = read_back(path)[0]
    arch = fields["general.architecture"]
    return {key: fields[f"{arch}.{key}"] for key in keys}


def made(source: Path, **how: Any) -> Path:
    out = source.with_name("out.gguf")
    graph = eir.load(source)
    eir.save(eir.squeeze(graph, **how) if "drop" in how else eir.stretch(graph, **how), out)
    assert eir.verify_checkpoint(out, source).differences == []
    return out


# -- lists -------------------------------------------------------------------------------------------------------------


def test_lists_with_an_entry_for_each_layer_follow(tmp_path: Path) -> None:
    more = {
        "attention.head_count_kv": [2, 1, 4, 2], "attention.head_count": [4, 4, 8, 4],
        "feed_forward_length": [96] * 3 + [64],
        "attention.sliding_window_pattern": [True, True, False, True], "swiglu_clamp_exp": [0.5, 1.5, 2.5, 3.5],
        "rope.dimension_sections": [8, 8, 0, 0], "classifier.output_labels": ["a", "b", "c", "d"],
    }  # fmt: skip
    source = llama(tmp_path / "m.gguf", 4, more)
    out = made(source, plan="0-2,1,2,3")
    assert stated(out, "block_count", *more) == {
        "block_count": 6, "attention.head_count_kv": [2, 1, 4, 1, 4, 2], "attention.head_count": [4, 4, 8, 4, 8, 4],
        "feed_forward_length": [96] * 5 + [64],
        "attention.sliding_window_pattern": [True, True, False, True, False, True],
        "swiglu_clamp_exp": [0.5, 1.5, 2.5, 1.5, 2.5, 3.5], "rope.dimension_sections": [8, 8, 0, 0],
        "classifier.output_labels": ["a", "b", "c", "d"],
    }  # fmt: skip
    assert stated(made(source, drop=[1, 2]), "block_count", "attention.head_count_kv") == {
        "block_count": 2, "attention.head_count_kv": [2, 2],
    }  # fmt: skip


def test_a_tokenizer_as_long_as_the_stack_is_no_list_of_layers(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf", 40, {"attention.head_count_kv": [2] * 39 + [1]})
    out = made(source, drop=[0])
    fields = read_back(out)[0]
    assert len(fields["tokenizer.ggml.tokens"]) == 40
    assert fields["llama.attention.head_count_kv"] == [2] * 38 + [1]


def test_layers_of_another_file_bring_their_own_entries(tmp_path: Path) -> None:
    one = llama(tmp_path / "a.gguf", 3, {"attention.head_count_kv": [2, 2, 2]})
    two = llama(tmp_path / "b.gguf", 3, {"attention.head_count_kv": [1, 4, 8], "rope.freq_base": 5e5})
    graph = eir.stretch(eir.load(one), plan="0-2,b/1,b/2", others={"b": eir.load(two)})
    out = tmp_path / "out.gguf"
    eir.save(graph, out)
    assert stated(out, "attention.head_count_kv", "rope.freq_base") == {
        "attention.head_count_kv": [2, 2, 2, 4, 8], "rope.freq_base": 10000.0,
    }  # fmt: skip
    assert eir.verify_checkpoint(out).differences == []
    bare = llama(tmp_path / "c.gguf", 3)
    mixed = eir.stretch(eir.load(one), plan="0-2,b/1", others={"b": eir.load(bare)})
    with pytest.raises(PlanError, match="has an entry for each layer, and 'b' has no such list"):
        eir.save(mixed, out)


# -- rules by number ---------------------------------------------------------------------------------------------------


def test_leading_dense_layers_are_counted_anew(tmp_path: Path) -> None:
    shapes = hybrid([layer(), layer(), *[expert_layer()] * 3])
    source = write(
        tmp_path / "m.gguf", shapes, llama_metadata(5, leading_dense_block_count=2), arch="deepseek2"
    )
    assert stated(made(source, plan="0,1,0,1,2-4,4"), "block_count", "leading_dense_block_count") == {
        "block_count": 8, "leading_dense_block_count": 4,
    }  # fmt: skip
    assert stated(made(source, drop=[0]), "leading_dense_block_count") == {"leading_dense_block_count": 1}
    with pytest.raises(PlanError, match="leading_dense_block_count = 2 states that the first layers"):
        made(source, plan="0-4,0")


def test_last_layers_that_share_are_counted_anew(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf", 5, {"attention.shared_kv_layers": 2})
    assert stated(made(source, plan="0-4,3,4"), "attention.shared_kv_layers") == {
        "attention.shared_kv_layers": 4
    }
    with pytest.raises(PlanError, match="states that the last layers are of another kind"):
        made(source, plan="0-4,1")


@pytest.mark.parametrize(
    "key", ["full_attention_interval", "interleave_moe_layer_step", "moe_every_n_layers"]
)
def test_a_period_has_to_hold(tmp_path: Path, key: str) -> None:
    kinds = [layer(), layer(), expert_layer()]
    source = write(tmp_path / "m.gguf", hybrid(kinds * 2), llama_metadata(6, **{key: 3}), arch="hybrid")
    assert stated(made(source, to_units=3), "block_count", key) == {"block_count": 9, key: 3}
    with pytest.raises(PlanError):
        made(source, plan="0-5,5")


def test_a_period_that_shapes_do_not_show_has_to_hold(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf", 6, {"attention.sliding_window_pattern": 3})
    graph = eir.load(source)
    assert graph.stages[0].period == 3
    assert stated(made(source, to_units=3), "block_count", "attention.sliding_window_pattern") == {
        "block_count": 9, "attention.sliding_window_pattern": 3,
    }  # fmt: skip
    with pytest.raises(
        PlanError, match=r"layer 6 of the target would be a copy of layer 2, and by llama.attention.slid"
    ):
        eir.save(eir.stretch(graph.with_unit(1), plan="0-5,2"), tmp_path / "out.gguf")
    uneven = llama(tmp_path / "m7.gguf", 7, {"attention.sliding_window_pattern": 3})
    with pytest.raises(PlanError, match="change by multiples of 3"):
        made(uneven, to_units=8)
    assert stated(made(uneven, plan="0-6,4-6"), "block_count") == {"block_count": 10}


def test_a_window_of_some_layers_that_no_entry_names_needs_a_unit(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf", 6, {"attention.sliding_window": 1024})
    graph = eir.load(source)
    assert graph.stages[0].period is None
    for plan in ("0-5,4,5", "0-5,5"):
        with pytest.raises(PlanError, match=r"m.gguf states a sliding window and not which .* --unit N"):
            eir.stretch(graph, plan=plan)
    with pytest.raises(PlanError, match="states a sliding window"):
        eir.squeeze(graph, drop=[4, 5])
    eir.save(eir.stretch(graph, plan="0-5,4,5", unit=2), tmp_path / "out.gguf")
    assert stated(tmp_path / "out.gguf", "block_count") == {"block_count": 8}
    with pytest.raises(PlanError, match="2 blocks make a unit"):
        eir.stretch(graph, plan="0-5,5", unit=2)
    eir.save(eir.stretch(graph, plan="0-5,5", unit=1), tmp_path / "out.gguf")
    assert stated(tmp_path / "out.gguf", "block_count") == {"block_count": 7}
    named = {"attention.sliding_window": 1024, "attention.sliding_window_pattern": [True, False] * 3}
    assert stated(made(llama(tmp_path / "n.gguf", 6, named), plan="0-5,5"), "block_count") == {
        "block_count": 7
    }
    none = llama(tmp_path / "z.gguf", 6, {"attention.sliding_window": 0})
    assert stated(made(none, plan="0-5,5"), "block_count") == {"block_count": 7}


def test_layers_that_were_divided_stay_in_their_group(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf", 6, {"rescale_every_n_layers": 3})
    assert stated(made(source, plan="0,1,1,3-5"), "block_count") == {"block_count": 6}
    with pytest.raises(PlanError, match="rescale_every_n_layers = 3"):
        made(source, to_units=7)


def test_kinds_that_no_entry_tells_stay_where_they_are_built(tmp_path: Path) -> None:
    source = write(tmp_path / "m.gguf", hybrid([layer(), RECURRENT] * 3), llama_metadata(6), arch="hybrid")
    assert stated(made(source, plan="0-5,4,5"), "block_count") == {"block_count": 8}
    with pytest.raises(PlanError):
        made(source, plan="0-5,4")
    told = llama_metadata(6, **{"attention.head_count_kv": [2, 0] * 3})
    listed = write(tmp_path / "l.gguf", hybrid([layer(), RECURRENT] * 3), told, arch="hybrid")
    graph = eir.stretch(eir.load(listed).with_unit(1), plan="0-5,4")
    eir.save(graph, tmp_path / "listed.gguf")
    assert stated(tmp_path / "listed.gguf", "attention.head_count_kv") == {
        "attention.head_count_kv": [2, 0, 2, 0, 2, 0, 2]
    }


def test_layers_that_predict_further_tokens_stay_last(tmp_path: Path) -> None:
    further = {**layer(), "nextn.eh_proj.weight": (WIDTH, 2 * WIDTH), "nextn.enorm.weight": (WIDTH,)}
    told = llama_metadata(5, nextn_predict_layers=1, **{"attention.head_count_kv": [2, 1, 2, 1, 8]})
    source = write(tmp_path / "m.gguf", hybrid([*[layer()] * 4, further]), told, arch="glm4moe")
    graph = eir.load(source)
    assert [len(stage) for stage in graph.stages] == [4]
    assert "predicts further tokens (glm4moe.nextn_predict_layers)" in graph.structure.note
    out = made(source, plan="0-3,2,3")
    assert stated(out, "block_count", "nextn_predict_layers", "attention.head_count_kv") == {
        "block_count": 7, "nextn_predict_layers": 1, "attention.head_count_kv": [2, 1, 2, 1, 2, 1, 8],
    }  # fmt: skip
    tensors = read_back(out)[1]
    assert tensors["blk.6.nextn.eh_proj.weight"] == read_back(source)[1]["blk.4.nextn.eh_proj.weight"]
    assert not [name for name in tensors if "nextn" in name and not name.startswith("blk.6.")]
    shorter = made(source, drop=[0, 1])
    assert stated(shorter, "block_count") == {"block_count": 3}
    assert "blk.2.nextn.enorm.weight" in read_back(shorter)[1]


# -- parts of a network ------------------------------------------------------------------------------------------------


def _towers(parts: Mapping[str, int]) -> Shapes:
    found: Shapes = {"token_embd.weight": (40, WIDTH)}
    for head, count in parts.items():
        for number in range(count):
            found |= {f"{head}.{number}.{name}": shape for name, shape in layer().items()}
    return found


@pytest.mark.slow
def test_an_encoder_and_a_decoder_are_counted_apart(tmp_path: Path) -> None:
    told = {**llama_metadata(3), "decoder_block_count": 4}
    source = write(tmp_path / "m.gguf", _towers({"enc.blk": 3, "dec.blk": 4}), told, arch="t5")
    graph = eir.load(source)
    assert {stage.name: len(stage) for stage in graph.stages} == {"dec.blk": 4, "enc.blk": 3}
    out = made(source, plan="dec.blk=0-3,3")
    assert stated(out, "block_count", "decoder_block_count") == {"block_count": 3, "decoder_block_count": 5}
    out = made(source, plan="enc.blk=0,2")
    assert stated(out, "block_count", "decoder_block_count") == {"block_count": 2, "decoder_block_count": 4}
    one = write(tmp_path / "one.gguf", _towers({"enc.blk": 3, "dec.blk": 3}), llama_metadata(3), arch="t5")
    with pytest.raises(PlanError, match=r"t5.block_count of one.gguf is about more than one of"):
        made(one, plan="enc.blk=0,2")
    assert stated(made(one, plan="enc.blk=0-2,2|dec.blk=0-2,2"), "block_count") == {"block_count": 4}


def test_towers_of_a_projector_file(tmp_path: Path) -> None:
    told = {
        "vision.block_count": 4, "audio.block_count": 3, "vision.is_deepstack_layers": [False, True, False, True],
        "vision.wa_layer_indexes": [1, 3], "vision.image_mean": [0.5, 0.5, 0.5], "vision.n_wa_pattern": 2,
    }  # fmt: skip
    source = write(tmp_path / "m.gguf", _towers({"v.blk": 4, "a.blk": 3}), told, arch="clip")
    out = made(source, plan="v.blk=0-3,2,3")
    assert stated(out, *told) == {
        **told, "vision.block_count": 6, "vision.is_deepstack_layers": [False, True] * 3,
        "vision.wa_layer_indexes": [1, 3, 5],
    }  # fmt: skip
    assert stated(made(source, plan="a.blk=0,2"), "audio.block_count", "vision.image_mean") == {
        "audio.block_count": 2, "vision.image_mean": [0.5, 0.5, 0.5],
    }  # fmt: skip


# -- what cannot be stated ---------------------------------------------------------------------------------------------


def test_counts_that_are_wrong_or_missing(tmp_path: Path) -> None:
    wrong = llama(tmp_path / "wrong.gguf", 4, {"block_count": 7})
    assert len(eir.load(wrong).stages[0]) == 4
    with pytest.raises(
        SourceError, match=r"wrong.gguf states llama.block_count = 7, and holds 4 layers at blk"
    ):
        made(wrong, to_units=5)
    told = llama_metadata(4)
    del told["block_count"]
    none = write(tmp_path / "none.gguf", llama_tensors(4), told)
    with pytest.raises(PlanError, match="no entry that counts the 4 layers at blk"):
        made(none, to_units=5)


def test_a_tensor_with_a_part_for_each_layer_cannot_follow(tmp_path: Path) -> None:
    shapes = {**llama_tensors(3), "per_layer_model_proj.weight": (3 * 32, WIDTH)}
    source = write(
        tmp_path / "m.gguf", shapes, llama_metadata(3, embedding_length_per_layer_input=32), arch="gemma3n"
    )
    with pytest.raises(
        PlanError, match=r"per_layer_model_proj.weight \[96, 64\] has 32 entries .* each of the 3 layers"
    ):
        made(source, to_units=4)


def test_a_plan_that_changes_nothing_copies_all(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf", 3, {"block_count": 9})
    out = tmp_path / "out.gguf"
    eir.save(eir.load(source), out)
    assert read_back(out)[1] == read_back(source)[1]
    assert layers_of(out, [0, 1, 2]) == {name: name for name in read_back(source)[1]}
