"""GGUF files of another depth: tensors as they were, metadata in step, read back by the ``gguf`` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import elastic_ir as eir
from elastic_ir.errors import EmitError, OutputError, PlanError, SourceChangedError, SourceError
from elastic_ir.formats.gguf.header import read_header
from elastic_ir.formats.gguf.parts import read_parts
from tests.networks.gguf_files import (
    WIDTH,
    Type,
    layer,
    layers_of,
    llama,
    llama_metadata,
    llama_tensors,
    read_back,
    write,
)

#: A mixture as Q4_K_M has it: one tensor of another type in some layers.
MIXED = {
    f"blk.{number}.{name}": Type.Q8_0 if name.startswith("attn_v") and number % 2 else Type.Q4_0
    for number in range(4)
    for name in layer()
}


def changed(source: Path, out: Path, **how: Any) -> Path:
    """A file stretched or squeezed, by what is said."""
    graph = eir.load(source)
    made = eir.squeeze(graph, **how) if "drop" in how else eir.stretch(graph, **how)
    eir.save(made, out)
    return out


@pytest.mark.parametrize("types", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q5_1, MIXED])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 0, 1], [0, 1, 1, 2, 3, 3, 3], [0, 3], [3, 2, 1, 0]])
def test_tensors_are_copies_and_all_else_stays(tmp_path: Path, types: Any, order: list[int]) -> None:
    source = llama(tmp_path / "m.gguf", 4, types=types)
    plan = ",".join(map(str, order))
    out = changed(source, tmp_path / "out.gguf", plan=plan)
    before, tensors = read_back(source)
    after, made = read_back(out)
    assert {name: made[name] for name in made} == {
        name: tensors[origin] for name, origin in layers_of(out, order).items()
    }
    assert after.pop("elastic_ir.record")
    assert after == {**before, "llama.block_count": len(order)}
    assert list(made)[:1] + list(made)[-2:] == ["token_embd.weight", "output_norm.weight", "output.weight"]
    assert eir.verify_checkpoint(out).differences == []


def test_k_quants_and_wide_blocks_are_copied(tmp_path: Path) -> None:
    shapes = {
        f"blk.{number}.{name}": (256, 256)
        for number in range(3)
        for name in ("attn_q.weight", "ffn_up.weight")
    }
    kinds = [Type.Q4_K, Type.Q6_K, Type.IQ2_XXS, Type.Q3_K, Type.MXFP4, Type.TQ2_0]
    source = write(
        tmp_path / "m.gguf", {"token_embd.weight": (40, 256), **shapes}, {"block_count": 3},
        types=dict(zip(shapes, kinds, strict=True)),
    )  # fmt: skip
    out = changed(source, tmp_path / "out.gguf", plan="0-2,1,2")
    tensors, made = read_back(source)[1], read_back(out)[1]
    assert made == {name: tensors[origin] for name, origin in layers_of(out, [0, 1, 2, 1, 2]).items()}
    assert made["blk.3.ffn_up.weight"][0] == Type.Q3_K


@pytest.mark.parametrize("alignment", [None, 64, 4096])
def test_nothing_but_counts_and_the_record_changes_in_the_metadata(
    tmp_path: Path, alignment: int | None
) -> None:
    source = llama(tmp_path / "m.gguf", 3, alignment=alignment, types=Type.Q8_0)
    out = changed(source, tmp_path / "out.gguf", to_units=4)
    old, new = read_header(source), read_header(out)
    assert new.alignment == (alignment or 32)
    assert [*old.entries, "elastic_ir.record"] == list(new.entries)
    for key, entry in old.entries.items():
        if key != "llama.block_count":
            own = b"".join(old.bytes_of(entry.begin, entry.end).chunks())
            new_entry = new.entries[key]
            assert own == b"".join(new.bytes_of(new_entry.begin, new_entry.end).chunks()), key


def test_parts_become_parts_and_one_file_becomes_parts_and_back(tmp_path: Path) -> None:
    whole = llama(tmp_path / "whole.gguf", 4, types=Type.Q8_0)
    llama(tmp_path / "m.gguf", 4, types=Type.Q8_0, split=14)
    first = tmp_path / "m-00001-of-00003.gguf"
    changed(first, tmp_path / "out.gguf", plan="0-3,1-3")
    (made,) = tmp_path.glob("out-00001-of-*.gguf")
    parts = read_parts(made)
    assert len(parts) > 3
    expected = read_back(changed(whole, tmp_path / "one.gguf", plan="0-3,1-3"))[1]
    held = {}
    for number, part in enumerate(parts):
        fields, tensors = read_back(part.path)
        assert (fields["split.no"], fields["split.count"], fields["split.tensors.count"]) == (
            number,
            len(parts),
            66,
        )
        held.update(tensors)
    assert held == expected
    assert eir.verify_checkpoint(made).differences == []

    from elastic_ir.checkpoints.gguf.write import plan_gguf, save_gguf

    graph = eir.stretch(eir.load(first), plan="0-3,1-3")
    (one,) = save_gguf(plan_gguf(graph, tmp_path / "joined.gguf", 10**9))
    fields, tensors = read_back(one)
    assert tensors == expected
    assert not [key for key in fields if key.startswith("split.")]
    named = save_gguf(plan_gguf(eir.load(whole), tmp_path / "p-00001-of-00009.gguf", 60_000))
    count = len(named)
    assert [path.name for path in named] == [f"p-{at + 1:05}-of-{count:05}.gguf" for at in range(count)]


def test_an_aligned_file_in_parts_is_aligned_in_each(tmp_path: Path) -> None:
    from elastic_ir.checkpoints.gguf.write import plan_gguf, save_gguf

    source = llama(tmp_path / "m.gguf", 4, alignment=128, types=Type.Q8_0)
    paths = save_gguf(plan_gguf(eir.load(source), tmp_path / "out.gguf", 60_000))
    assert len(paths) > 2
    tensors = {}
    for path in paths:
        fields, held = read_back(path)
        assert fields["general.alignment"] == 128
        tensors.update(held)
    assert tensors == read_back(source)[1]


def test_layers_of_several_files_whatever_their_types(tmp_path: Path) -> None:
    one, two = (
        llama(tmp_path / f"{name}.gguf", 4, types=kind, seed=seed)
        for name, kind, seed in (("a", Type.Q8_0, 1), ("b", Type.Q4_0, 2))
    )
    graph = eir.stretch(eir.load(one), plan="0-3,b/1-2", others={"b": eir.load(two)})
    eir.save(graph, tmp_path / "out.gguf")
    made, (first, second) = read_back(tmp_path / "out.gguf")[1], (read_back(path)[1] for path in (one, two))
    assert made["blk.3.ffn_up.weight"] == first["blk.3.ffn_up.weight"]
    assert made["blk.4.ffn_up.weight"] == second["blk.1.ffn_up.weight"]
    assert made["output.weight"] == first["output.weight"]
    assert eir.verify_checkpoint(tmp_path / "out.gguf").differences == []
    other = write(tmp_path / "c.gguf", llama_tensors(4), llama_metadata(4), arch="qwen2")
    mixed = eir.stretch(eir.load(one), plan="0-3,b/1", others={"b": eir.load(other)})
    with pytest.raises(PlanError, match="is of the architecture 'llama', and b of 'qwen2'"):
        eir.save(mixed, tmp_path / "mixed.gguf")


def test_the_record_tells_of_every_change(tmp_path: Path) -> None:
    from elastic_ir.checkpoints.gguf.record import read_steps

    source = llama(tmp_path / "m.gguf", 4)
    longer = changed(source, tmp_path / "m6.gguf", to_units=6)
    shorter = changed(longer, tmp_path / "m5.gguf", drop=[0])
    steps = read_steps(read_header(shorter))
    assert [(step.sources, dict(step.plan)) for step in steps] == [
        (("m.gguf",), {"blk": "0-3,0-1"}), (("m6.gguf",), {"blk": "1-5"}),
    ]  # fmt: skip
    assert steps[1].origin("blk.0.attn_q.weight").name == "blk.1.attn_q.weight"
    assert eir.verify_checkpoint(shorter).differences == []


# -- what verify finds -------------------------------------------------------------------------------------------------


def _spoilt(path: Path, old: bytes, new: bytes, out: Path) -> Path:
    raw = path.read_bytes()
    assert raw.count(old) == 1
    out.write_bytes(raw.replace(old, new))
    return out


def test_verify_finds_a_byte_a_count_and_a_template(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf", 3)
    out = changed(source, tmp_path / "out.gguf", to_units=4)
    bad = _spoilt(out, b"message['content']", b"message['CONTENT']", tmp_path / "bad.gguf")
    raw = bytearray(bad.read_bytes())
    at = raw.index(b"llama.block_count") + len("llama.block_count") + 4
    raw[at] = 3
    raw[-1] ^= 1
    bad.write_bytes(raw)
    found = eir.verify_checkpoint(bad, source)
    texts = {one.tensor: one.what for one in found.differences if one.tensor != "metadata"}
    assert texts.keys() == {"output.weight"}
    assert texts["output.weight"].startswith("differs, first at byte")
    told = [one.what for one in found.differences if one.tensor == "metadata"]
    assert told[0] == "states llama.block_count = 3 where 4 follows from the plan"
    assert "tokenizer.chat_template" in told[1]
    assert len(told) == 2


def test_verify_without_a_record_compares_by_names(tmp_path: Path) -> None:
    one, two = (llama(tmp_path / f"{seed}.gguf", 2, seed=seed) for seed in (0, 1))
    with pytest.raises(SourceError, match=r"has no elastic_ir.record.*--against"):
        eir.verify_checkpoint(one)
    assert eir.verify_checkpoint(one, llama(tmp_path / "same.gguf", 2)).differences == []
    assert len(eir.verify_checkpoint(one, two).differences) == len(llama_tensors(2))
    with pytest.raises(SourceError, match="is not a GGUF file"):
        eir.verify_checkpoint(one, tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    out = changed(llama(tmp_path / "m.gguf", 3), tmp_path / "out.gguf", to_units=4)
    bad = _spoilt(out, b'"history": [', b'"history": {', tmp_path / "bad.gguf")
    with pytest.raises(SourceError, match=r"elastic_ir.record of .*bad.gguf is damaged"):
        eir.verify_checkpoint(bad)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_other_forms_are_refused_both_ways(tmp_path: Path) -> None:
    from elastic_ir.zoo import cifar_resnet

    graph = eir.load(llama(tmp_path / "m.gguf", 3))
    for name in ("out.pt", "out.safetensors", "folder", "out.onnx"):
        with pytest.raises(OutputError, match=r"written as .gguf"):
            eir.save(graph, tmp_path / name)
    with pytest.raises(EmitError, match="was not read from a GGUF file"):
        eir.save(cifar_resnet(20, width=4), tmp_path / "out.gguf")
    with pytest.raises(SourceError, match="leave out --arch"):
        eir.load(tmp_path / "m.gguf", arch="torchvision:resnet18")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_masks_have_no_place(tmp_path: Path) -> None:
    import torch

    path = llama(tmp_path / "m.gguf", 3)
    graph = eir.load(path, masks={"blk.0.attn_q.weight": torch.ones(WIDTH, WIDTH)})
    with pytest.raises(EmitError, match=r"holds no masks, and blk.0.attn_q.weight has one"):
        eir.save(graph, tmp_path / "out.gguf")


def test_the_source_is_not_written_over(tmp_path: Path) -> None:
    llama(tmp_path / "m.gguf", 4, split=14)
    graph = eir.load(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(OutputError, match=r"m-00001-of-00003.gguf is the source"):
        eir.save(graph, tmp_path / "m.gguf")


def test_a_source_that_changes_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    path = llama(tmp_path / "m.gguf", 3)
    graph = eir.stretch(eir.load(path), to_units=4)
    llama(path, 3, seed=1)
    with pytest.raises(SourceChangedError, match="changed after it was read"):
        eir.save(graph, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = eir.stretch(eir.load(llama(tmp_path / "m.gguf", 3)), to_units=4)
    full = type("Usage", (), {"free": 4096})()
    monkeypatch.setattr("elastic_ir.checkpoints.gguf.write.shutil.disk_usage", lambda path: full)
    with pytest.raises(OutputError, match=r"needs 0.00 GB and .* has 0.00 GB free"):
        eir.save(graph, tmp_path / "out.gguf")
