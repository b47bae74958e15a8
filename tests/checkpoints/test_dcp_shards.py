"""What torch's HuggingFaceStorageWriter leaves: files of ranks are put together, whole ones are ordinary folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import elastic_ir as eir
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import SourceError
from tests.checkpoints.folders import config, llama

INFO = "DCP_SHARDING_INFO"


def ranks(folder: Path, state: dict[str, torch.Tensor], count: int) -> Path:
    """The files of so many ranks, each with a run of rows, as ``save_distributed=True`` has them."""
    folder.mkdir()
    for rank in range(count):
        held, places = {}, {}
        for name, tensor in state.items():
            rows = -(-len(tensor) // count)
            part = tensor[rank * rows : (rank + 1) * rows]
            if len(part):
                held[name] = part.contiguous()
                places[name] = {"saved_offsets": [rank * rows, *[0] * (tensor.ndim - 1)]}
        path = folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        save_file(held, path, {"format": "pt", INFO: json.dumps(places)})
    return folder


def state() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in llama(3).items()}


def written(folder: Path, distributed: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=distributed)
        save(state(), storage_writer=writer)
    return folder


def test_files_of_ranks_are_put_together(tmp_path: Path) -> None:
    source = ranks(tmp_path / "shards", state(), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        restored = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
        load(restored, storage_reader=HuggingFaceStorageReader(str(source)))  # they are as torch has them
    graph = eir.load(source)
    for name, tensor in graph.state_dict().items():
        assert torch.equal(tensor, restored[name]) and torch.equal(tensor, state()[name]), name
    eir.save(eir.stretch(graph, to_units=5), tmp_path / "out.safetensors")
    made = load_file(tmp_path / "out.safetensors")
    assert torch.equal(
        made["model.layers.3.mlp.up_proj.weight"], state()["model.layers.0.mlp.up_proj.weight"]
    )
    result = CliRunner().invoke(elastic_ir, ["stretch", str(source), "--to-units", "5"])
    assert result.exit_code == 1 and "give a name with .pt or .safetensors" in result.output


def test_what_one_process_has_written(tmp_path: Path) -> None:
    """Tensors are whole: with the model's configuration it is a folder like any other, torch's notes left out."""
    source = written(tmp_path / "one", distributed=True)
    assert torch.equal(eir.load(source).state_dict()["lm_head.weight"], state()["lm_head.weight"])
    source = written(tmp_path / "whole")
    with pytest.raises(
        SourceError, match=r"has no config\.json, only weights: put that of their model beside them"
    ):
        eir.load(source, headers_only=True)
    (source / "config.json").write_text(json.dumps(config(3)))
    eir.save(eir.stretch(eir.load(source, headers_only=True), to_units=5), tmp_path / "out", check=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = {
            "model.layers.4.mlp.up_proj.weight": torch.zeros(
                state()["model.layers.1.mlp.up_proj.weight"].shape
            )
        }
        load(wanted, storage_reader=HuggingFaceStorageReader(str(tmp_path / "out")))
    (found,) = wanted.values()
    assert torch.equal(found, state()["model.layers.1.mlp.up_proj.weight"])


def test_shards_that_are_refused(tmp_path: Path) -> None:
    source = ranks(tmp_path / "shards", state(), 3)
    first = source / "shard-00001-model-00001-of-00001.safetensors"
    with pytest.raises(
        SourceError, match="holds one rank's parts of tensors; give the folder with the files of all"
    ):
        eir.load(first)
    (source / "shard-00002-model-00001-of-00001.safetensors").rename(tmp_path / "renamed.safetensors")
    with pytest.raises(SourceError, match="holds one rank's parts of tensors"):
        eir.load(tmp_path / "renamed.safetensors")
    with pytest.raises(
        SourceError, match=r"parts of '\S+' do not fill its shape .* the file of a rank is missing"
    ):
        eir.load(source)
    with pytest.raises(SourceError, match="holds one network, and key='model'"):
        eir.load(source, key="model")
    tensors = load_file(first)
    lacking = {name: {"saved_offsets": [0] * (tensor.ndim - 1)} for name, tensor in tensors.items()}
    for text, message in (
        (
            json.dumps(lacking),
            r"is damaged: DCP_SHARDING_INFO gives '\S+' a place of \d axes, and the tensor has",
        ),
        ("{}", "does not say where the part of"),
        ("[1]", "does not list the places of parts"),
    ):
        save_file(tensors, first, {INFO: text})
        with pytest.raises(SourceError, match=message):
            eir.load(source)
    save_file(tensors, first)
    with pytest.raises(SourceError, match="does not state where the parts of tensors in it lie"):
        eir.load(source)


def test_files_that_the_names_count_are_missed(tmp_path: Path) -> None:
    """Each rank has its tensors in so many files; which ranks there were only a gap between them shows."""
    names = [name for name in state() if "layers.2." in name]
    source = ranks(tmp_path / "shards", {n: t for n, t in state().items() if n not in names}, 3)
    for path in sorted(source.iterdir()):
        path.rename(path.with_name(path.name.replace("of-00001", "of-00002")))
    with pytest.raises(
        SourceError, match=r"no rank has its file 2 of 2 \(shard-00001-model-00002-of-00002.safetensors\)"
    ):
        eir.load(source)
    for path in ranks(tmp_path / "second", {n: state()[n] for n in names}, 3).iterdir():
        path.rename(source / path.name.replace("model-00001-of-00001", "model-00002-of-00002"))
    assert len(eir.load(source).stages[0]) == 3
    for path in source.glob("shard-00002-*"):
        path.rename(tmp_path / path.name)
    with pytest.raises(
        SourceError, match=r"a rank is missing \(shard-00002-model-00001-of-00002.safetensors\), or files of"
    ):
        eir.load(source)
    (tmp_path / "shard-00002-model-00001-of-00002.safetensors").rename(
        source / "shard-00002-model-00001-of-00001.safetensors"
    )
    with pytest.raises(
        SourceError, match="files of several saves: some are of 1 and some of 2 for each rank"
    ):
        eir.load(source)


def test_a_shard_that_the_index_names_is_missed(tmp_path: Path) -> None:
    """Whole tensors in several files, of which torch's index shows the last too."""
    places = {name: 1 + (number > 10) for number, name in enumerate(state())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = HuggingFaceStorageWriter(str(tmp_path / "whole"), fqn_to_index_mapping=places)
        save(state(), storage_writer=writer)
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config(3)))
    assert len(eir.load(tmp_path / "whole", headers_only=True).stages[0]) == 3
    (tmp_path / "whole" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"is not complete: model-00002-of-00002.safetensors of 2 shards"):
        eir.load(tmp_path / "whole", headers_only=True)
