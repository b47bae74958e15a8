"""Undo: what stretch and squeeze wrote becomes its source again, bit for bit, or a list of what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.record import read_record
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import PlanError
from elastic_ir.zoo import cifar_resnet
from tests.checkpoints.folders import config, llama, run, write
from tests.checkpoints.test_write import made
from tests.networks.gguf_files import Type
from tests.networks.gguf_files import llama as gguf_llama


def undo(*arguments: object) -> Result:
    return CliRunner().invoke(elastic_ir, ["undo", *map(str, arguments)])


def content(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in made(folder).items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    lists = {"layer_types": ["a", "b", "a", "b"], "mlp_only_layers": [1, 3]}
    folder = write(tmp_path / "source", llama(), config(4, **lists), shards=3)
    (folder / "README.md").write_text("# A model\n\nWith a text.\n")
    return folder


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "back"),
    [
        (("--plan", "0-3,2,3"), "0-3"),
        (("--plan", "0,0,1,1,2,3"), "0,2,4,5"),
        (("--plan", "0,3,2,1,0"), "0,3,2,1"),
        (("--to-units", 8, "--order", "interpolate", "--zero", "o_proj"), "0,2,4,6"),
        (("--to-units", 6, "--scale", "down_proj=0.5"), "0-3"),
    ],
)
def test_a_folder_is_as_it_was(source: Path, tmp_path: Path, options: tuple[object, ...], back: str) -> None:
    run("stretch", source, *options, "--unit", 1, "-o", tmp_path / "deep")
    result = undo(tmp_path / "deep", "-o", tmp_path / "again", "--no-check")
    assert result.exit_code == 0, result.output
    assert f"-> 4  {back}\n" in result.output
    again = tmp_path / "again"
    assert content(again) == content(source)
    assert json.loads((again / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert (again / "README.md").read_text() == (source / "README.md").read_text()
    assert not (again / "elastic_ir.json").exists()


def test_changes_are_undone_one_by_one(source: Path, tmp_path: Path) -> None:
    run("stretch", source, "--plan", "0-3,2,3", "--unit", 1, "-o", tmp_path / "six")
    run("stretch", tmp_path / "six", "--plan", "0-5,0", "--unit", 1, "-o", tmp_path / "seven")
    assert undo(tmp_path / "seven", "-o", tmp_path / "a", "--no-check").exit_code == 0
    assert content(tmp_path / "a") == content(tmp_path / "six")
    assert read_record(tmp_path / "a") == read_record(tmp_path / "six")
    assert (tmp_path / "a" / "README.md").read_text() == (tmp_path / "six" / "README.md").read_text()
    assert run("verify", tmp_path / "a", "--against", source).exit_code == 0
    assert undo(tmp_path / "a", "-o", tmp_path / "b", "--no-check").exit_code == 0
    assert content(tmp_path / "b") == content(source)
    end = undo(tmp_path / "b", "-o", tmp_path / "c", "--no-check")
    assert end.exit_code == 1
    assert "error: b has no record of a change of depth, so there is nothing to undo" in end.output


def test_layers_of_another_model_go(source: Path, tmp_path: Path) -> None:
    lists = {"layer_types": ["a", "b", "a", "b"], "mlp_only_layers": [1, 3]}
    other = write(tmp_path / "other", llama(seed=1), config(4, **lists))
    mixed = tmp_path / "mixed"
    run("stretch", source, "--plan", "0,1,b/2,b/3,2,3", "--with", f"b={other}", "--unit", 1, "-o", mixed)
    assert undo(mixed, "-o", tmp_path / "again", "--no-check").exit_code == 0
    assert content(tmp_path / "again") == content(source)


def test_a_squeeze_lists_what_is_missing(source: Path, tmp_path: Path) -> None:
    run("squeeze", source, "--plan", "0,1", "--unit", 1, "-o", tmp_path / "two")
    result = undo(tmp_path / "two", "-o", tmp_path / "again")
    assert result.exit_code == 1
    assert result.output == (
        "error: two cannot be undone, since not all of source is in it: it has no copy of model.layers.2-3; only "
        "source itself has what is missing\n"
    )
    assert not (tmp_path / "again").exists()


def test_a_layer_that_is_only_scaled_is_not_restored(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps(
            {
                "slices": [
                    {"sources": [{"model": str(source), "layer_range": [0, 2]}]},
                    {
                        "sources": [
                            {
                                "model": str(source),
                                "layer_range": [2, 4],
                                "parameters": {"scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]},
                            }
                        ]
                    },
                ],
                "merge_method": "passthrough",
            }
        )
    )
    assert run("stretch", recipe, "-o", tmp_path / "half").exit_code == 0
    result = undo(tmp_path / "half", "-o", tmp_path / "again")
    assert result.exit_code == 1
    assert re.search(
        r"half cannot be undone: model\.layers\.2-3 of source are there only changed "
        r"\(model\.layers\.2\.self_attn\.o_proj\.weight is multiplied by 0\.5\)",
        result.output,
    )


def test_training_shows_where_copies_differ(source: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    run("stretch", source, "--plan", "0-3,2,3", "--unit", 1, "-o", deep)
    whole = undo(deep, "-o", tmp_path / "a", "--dry-run")
    assert "copies:     18 tensors are left out, each equal to the one that is taken\n" in whole.output
    state = load_file(deep / "model.safetensors")
    name = "model.layers.4.self_attn.q_proj.weight"
    state[name] = state[name] + np.float16(1)
    save_file(state, deep / "model.safetensors", {"format": "pt"})
    result = undo(deep, "-o", tmp_path / "b", "--dry-run")
    assert (
        "weights were changed since: 1 of 18 copies do not equal the first one, which is taken "
        f"({name}); the result has the source's layers, and not all of its values\n" in result.output
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda step: step.pop("gone"),
            "the record of deep is of an earlier ElasticIR, which did not state whether",
        ),
        (
            lambda step: step["lineage"].update({"model.layers.9.x": "model.layers.1.x"}),
            "its record is of other weights, since model.layers.9 is not there any more",
        ),
        (
            lambda step: step["lineage"].update(
                {"model.layers.0.input_layernorm.weight": "model.layers.7.z"}
            ),
            "undo does not bring back the source's names",
        ),
    ],
)
def test_a_record_that_does_not_suffice(source: Path, tmp_path: Path, change: Any, told: str) -> None:
    run("stretch", source, "--plan", "0-3,2,3", "--unit", 1, "-o", tmp_path / "deep")
    record = tmp_path / "deep" / "elastic_ir.json"
    data = json.loads(record.read_text())
    change(data["history"][-1])
    record.write_text(json.dumps(data))
    result = undo(tmp_path / "deep", "-o", tmp_path / "again")
    assert result.exit_code == 1 and told in result.output, result.output
    assert not (tmp_path / "again").exists()


def with_entries(source: Path, deep: Path, **gathered: object) -> np.ndarray[Any, Any]:
    """A stretched folder, and beside its six layers a tensor with an entry for each, by its record; the source's."""
    run("stretch", source, "--plan", "0-3,2,3", "--unit", 1, "-o", deep)
    own = np.arange(8, dtype=np.float32).reshape(4, 2)
    state = load_file(deep / "model.safetensors")
    how: dict[str, Any] = {"axis": 0, "entries": [0, 1, 2, 3, 2, 3], "size": 1, "shared": False, **gathered}
    state["beside"] = own[how["entries"]] if not how["shared"] else np.zeros(6, np.float32)
    save_file(state, deep / "model.safetensors", {"format": "pt"})
    data = json.loads((deep / "elastic_ir.json").read_text())
    data["version"] = 2
    data["history"][-1]["lineage"]["beside"] = {"name": "beside", "gathered": how}
    (deep / "elastic_ir.json").write_text(json.dumps(data))
    return own


def test_entries_of_layers_go_back(source: Path, tmp_path: Path) -> None:
    own = with_entries(source, tmp_path / "deep")
    result = undo(tmp_path / "deep", "-o", tmp_path / "again", "--no-check")
    assert result.exit_code == 0, result.output
    assert (load_file(tmp_path / "again" / "model.safetensors")["beside"] == own).all()


@pytest.mark.parametrize(
    ("gathered", "told"),
    [
        (
            {"shared": True},
            "deep cannot be undone bit for bit: beside holds softmaxed weights, of which copies share",
        ),
        (
            {"entries": [0, 1, 3, 3, 1, 3]},
            "deep cannot be undone: beside has no entry 2 of the source's any more",
        ),
    ],
)
def test_entries_that_do_not_go_back(source: Path, tmp_path: Path, gathered: Any, told: str) -> None:
    with_entries(source, tmp_path / "deep", **gathered)
    result = undo(tmp_path / "deep", "-o", tmp_path / "again", "--no-check")
    assert result.exit_code == 1 and told in result.output, result.output
    assert not (tmp_path / "again").exists()


# -- GGUF --------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_comes_back_byte_by_byte(tmp_path: Path) -> None:
    source = gguf_llama(tmp_path / "m.gguf", 4, types=Type.Q8_0)
    eir.save(eir.stretch(eir.load(source), plan="0-3,1,2"), tmp_path / "d.gguf")
    result = undo(tmp_path / "d.gguf", "-o", tmp_path / "u.gguf")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "u.gguf").read_bytes() == source.read_bytes()


# -- files of networks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> eir.Graph:
    return eir.trace(cifar_resnet(20, width=4))


def emitted(graph: eir.Graph) -> dict[str, bytes]:
    return {
        name: b"".join(bytes(chunk) for chunk in weight.storage.emitted().chunks())
        for name, weight in graph.weights.items()
    }


@pytest.mark.everyday(1)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ticket"])
def test_a_file_is_as_it_was(resnet: eir.Graph, tmp_path: Path, suffix: str) -> None:
    first, second, third = (tmp_path / f"{name}{suffix}" for name in ("a", "b", "c"))
    eir.save(resnet, first, check=False)
    eir.save(eir.stretch(eir.load(first), plan="0,2,1,2|0-2|0-2,1"), second, check=False)
    eir.save(eir.load(second), third, check=False)  # a file that is written unchanged keeps what led to it
    eir.save(eir.stretch(eir.load(third), to_stages=(6, 3, 4)), third, check=False)
    assert [len(stage) for stage in eir.undo(eir.load(third)).stages] == [4, 3, 4]
    eir.save(eir.undo(eir.load(third)), third, check=False)
    assert emitted(eir.load(third)) == emitted(eir.load(second))
    eir.save(eir.undo(eir.load(third)), third, check=False)
    assert emitted(eir.load(third)) == emitted(resnet)
    assert eir.load(third).info.steps == ()


@pytest.mark.parametrize(
    ("passes", "told"),
    [
        (
            "stretch{to-depth=32},fold-batchnorm",
            r"more of m\.pt than which layers there are \(passes: stretch{to-depth=32}, fold-batchnorm\)",
        ),
        (
            "stretch{to-depth=32 order=interpolate},rescale-residual",
            r"layer1\.1-2, layer2\.1-2, layer3\.1-2 of m\.pt are .* changed \(layer1\.1\.bn2\.\w+ is computed anew\)",
        ),
    ],
)
def test_what_other_passes_did_is_not_undone(
    resnet: eir.Graph, tmp_path: Path, passes: str, told: str
) -> None:
    from elastic_ir.passes.infra.pipeline import Pipeline

    eir.save(resnet, tmp_path / "m.pt", check=False)
    eir.save(Pipeline.parse(passes).run(eir.load(tmp_path / "m.pt")), tmp_path / "p.pt", check=False)
    with pytest.raises(PlanError, match=told):
        eir.undo(eir.load(tmp_path / "p.pt"))


def test_a_pipeline_of_depths_is_one_change(resnet: eir.Graph, tmp_path: Path) -> None:
    from elastic_ir.passes.infra.pipeline import Pipeline

    eir.save(resnet, tmp_path / "m.pt", check=False)
    both = Pipeline.parse("stretch{to-stages=7,7,7},squeeze{to-stages=4,4,4 drop=tail}")
    eir.save(both.run(eir.load(tmp_path / "m.pt")), tmp_path / "p.pt", check=False)
    assert emitted(eir.undo(eir.load(tmp_path / "p.pt"))) == emitted(resnet)


def test_what_was_changed_in_memory_is_refused(resnet: eir.Graph) -> None:
    with pytest.raises(PlanError, match="was changed since it was read; undo takes back what a file records"):
        eir.undo(eir.stretch(resnet, to_depth=32))


def test_the_command_restores_a_file(resnet: eir.Graph, tmp_path: Path) -> None:
    eir.save(resnet, tmp_path / "m.pt", check=False)
    eir.save(eir.stretch(eir.load(tmp_path / "m.pt"), to_depth=32), tmp_path / "m-depth32.pt", check=False)
    result = undo(tmp_path / "m-depth32.pt")
    assert result.exit_code == 0, result.output
    assert "depth:      32 -> 20\n" in result.output
    assert emitted(eir.load(tmp_path / "m-depth20.pt")) == emitted(resnet)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("lists", ["groups.1.body", "groups.*.body"])
def test_lists_inside_of_blocks_go_back(tmp_path: Path, suffix: str, lists: str) -> None:
    """The file shows the groups as its stages; the change was of what lies in them."""
    names = [f"groups.{group}.body.{block}.{end}" for group in range(3) for block in range(2) for end in "ab"]
    weights = {f"{name}.weight": np.random.rand(6, 6).astype("f") for name in names}
    save_file({**weights, "groups.2.norm.weight": np.ones(6, "f")}, tmp_path / "source.safetensors")
    source, out = eir.load(tmp_path / "source.safetensors"), tmp_path / f"out{suffix}"
    assert [stage.name for stage in source.stages] == ["groups"]
    change = {stage.name: 4 for stage in source.at(lists).stages}
    eir.save(eir.stretch(source.at(lists), to_stages=change, unit=1), out)
    deep = eir.load(out)
    assert emitted(eir.undo(deep)) == emitted(source)
    with pytest.raises(PlanError, match="was changed since it was read"):
        eir.undo(eir.stretch(deep.at("groups.0.body"), to_units=5, unit=1))


def test_blocks_that_hold_other_layers_than_the_source_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no list of such a name is found, no block is a copy as a whole, and that is what is said."""
    weights = {f"groups.{n}.body.{m}.weight": np.ones((4, 4), "f") for n in range(3) for m in range(2)}
    save_file(weights, tmp_path / "source.safetensors")
    graph = eir.load(tmp_path / "source.safetensors").at("groups.*.body")
    eir.save(eir.stretch(graph, to_stages=[4, 4, 4], unit=1), tmp_path / "out.safetensors")
    monkeypatch.setattr("elastic_ir.passes.depth.undo.changed_lists", lambda step: ["groups.0.other"])
    with pytest.raises(
        PlanError, match=r"cannot be undone: no block of 'groups' is, in all that it holds, a copy"
    ):
        eir.undo(eir.load(tmp_path / "out.safetensors"))
