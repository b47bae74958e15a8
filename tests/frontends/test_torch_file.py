"""``.pt`` files: what is read, which bad files are told apart, extra records; what must not run is in test_pickles."""

from __future__ import annotations

import argparse
import functools
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats.torch_zip import append_zip_records, read_zip_records
from elastic_ir.frontends.torch_file import read_torch_file
from elastic_ir.zoo import cifar_resnet


def same_module(made: nn.Module, wanted: nn.Module) -> None:
    assert type(made) is type(wanted)
    assert list(made.state_dict()) == list(wanted.state_dict())
    for ours, theirs in zip(made.state_dict().values(), wanted.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_is_read_in_both_formats(tmp_path: Path, legacy: bool) -> None:
    state = cifar_resnet(14, width=4).state_dict()
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    read = read_torch_file(tmp_path / "a.pt")
    assert list(read) == list(state)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_module_is_rebuilt_in_both_formats(tmp_path: Path, legacy: bool) -> None:
    model = cifar_resnet(14, width=4)
    torch.save(model, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    read = read_torch_file(tmp_path / "a.pt")
    same_module(read, model)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(read.eval()(x), model.eval()(x))


def test_modules_of_the_known_packages_are_rebuilt(tmp_path: Path) -> None:
    import timm
    import transformers
    from torchvision import models

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    layer = nn.TransformerEncoderLayer(8, 2, activation="gelu", batch_first=True)
    pruned = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    prune.l1_unstructured(pruned[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    made = [
        models.VisionTransformer(
            16, 8, 1, 2, 8, 8, num_classes=3
        ),  # holds functools.partial(nn.LayerNorm, ...)
        timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=12, img_size=32),  # holds an enum
        transformers.BertModel(config),  # a configuration and a function
        nn.TransformerEncoder(layer, 2),
        nn.LSTM(3, 3),
        pruned,
    ]
    for index, model in enumerate(made):
        path = tmp_path / f"{index}.pt"
        torch.save(model, path)
        same_module(read_torch_file(path), model)
    read = read_torch_file(tmp_path / "5.pt")
    assert isinstance(next(iter(read[0]._forward_pre_hooks.values())), prune.L1Unstructured)


def test_a_training_checkpoint_with_plain_data_is_read(tmp_path: Path) -> None:
    import numpy as np

    model = cifar_resnet(14, width=4)
    content = {
        "model": model, "args": argparse.Namespace(lr=0.1, out=Path("runs")), "best": np.float64(7),
        "curve": np.arange(3, dtype=">i4"), "seen": {1, 2}, "order": OrderedDict(a=1), "bytes": b"ab", "epoch": 3,
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt")
    assert read["args"].lr == 0.1
    assert str(read["args"].out) == "runs"
    assert (read["best"], read["seen"], read["order"], read["bytes"], read["epoch"]) == (
        7,
        {1, 2},
        {"a": 1},
        b"ab",
        3,
    )
    assert read["curve"].tolist() == [0, 1, 2]
    same_module(read["model"], model)


# -- damaged files and other forms -------------------------------------------------------------------------------------


def said_of(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert said_of(path) == f"{path} does not exist"
    assert said_of(tmp_path) == f"{tmp_path} is a folder, not a .pt file"
    path.touch()
    assert said_of(path) == "a.pt is empty"
    path.write_bytes(bytes(4096))
    assert said_of(path).startswith("a.pt is not a PyTorch file: it begins with")
    path.write_bytes(b"hello world")
    assert said_of(path) == "a.pt is not a PyTorch file: it begins with b'hello wo'"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert (
        said_of(path)
        == "a.pt is only a pointer to a file in Git LFS; get the file itself with `git lfs pull`"
    )
    path.write_bytes(b"\x80\x02garbage")
    assert said_of(path).startswith("a.pt is damaged, or not a PyTorch file (")
    path.write_bytes(pickle.dumps([1, 2], 2))
    assert said_of(path).startswith("a.pt is damaged, or not a PyTorch file (")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "x")
    assert said_of(path) == "a.pt is a zip file, but none of torch.save: it has no record data.pkl"


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.randn(1000)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 40, 3):
        path.write_bytes(whole[:size])
        assert "damaged" in said_of(path)


@pytest.mark.filterwarnings("ignore")
def test_programs_are_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    assert said_of(tmp_path / "a.pt").startswith(
        "a.pt is a TorchScript archive, which holds code; save the state dict"
    )
    with (tmp_path / "b.pt").open("wb") as file:
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), file)
    assert said_of(tmp_path / "b.pt") == "b.pt is an exported program of torch.export; name it .pt2"


# -- helpers -----------------------------------------------------------------------------------------------------------


def test_extra_records_lie_beside_what_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = {"a": torch.randn(100), "b": torch.arange(7)}
    torch.save(state, path)
    append_zip_records(path, {"elastic_ir/graph.json": b"{}", "elastic_ir/masks.bin": bytes(range(256)) * 99})
    for load in (
        functools.partial(torch.load, weights_only=True),
        functools.partial(torch.load, weights_only=True, mmap=True),
        read_torch_file,
    ):
        read = load(path)
        assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    records = read_zip_records(path)
    assert records == {"elastic_ir/graph.json": b"{}", "elastic_ir/masks.bin": bytes(range(256)) * 99}
    with pytest.raises(EmitError, match="already has a record"):
        append_zip_records(path, {"elastic_ir/graph.json": b"{}"})
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert read_zip_records(path) == {}
    with pytest.raises(EmitError, match="nothing can be added"):
        append_zip_records(path, {"elastic_ir/graph.json": b"{}"})


def test_damaged_extra_records(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1)}, path)
    append_zip_records(path, {"elastic_ir/graph.json": b"unmistakable"})
    path.write_bytes(path.read_bytes().replace(b"unmistakable", b"unmistakeble"))
    with pytest.raises(
        SourceError, match=r"a\.pt is damaged: the record 'elastic_ir/graph\.json' is not what"
    ):
        read_zip_records(path)
