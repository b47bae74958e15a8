"""Running numbers in names: padded with zeros, in other scripts, in two ways, and beyond what ``int`` takes."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import PlanError, StructureError
from elastic_ir.ir.numbering import Series, is_index, natural_key, number_of, split_number, width_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(self.norm(x)).relu()  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """``layer.00``, children of a Sequential."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.layer = nn.Sequential(OrderedDict((f"{i:02}", Block()) for i in range(count)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.stem(x)))  # type: ignore[no-any-return]


class Table(nn.Module):
    """``h.000``, keys of a ModuleDict."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.h = nn.ModuleDict({f"{i:03}": Block() for i in range(count)})
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.h.values():
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Attributes(nn.Module):
    """``block01``, attributes beside others, counted from one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.stem = nn.Linear(4, 8)
        for i in range(1, count + 1):
            self.add_module(f"block{i:02}", Block())
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for i in range(1, self.count + 1):
            x = getattr(self, f"block{i:02}")(x)
        return self.head(x)  # type: ignore[no-any-return]


NETWORKS: tuple[Callable[[int], nn.Module], ...] = (Sequence, Table, Attributes)


@pytest.mark.parametrize("make", NETWORKS)
def test_a_traced_network_keeps_its_padding(make: Callable[[int], nn.Module]) -> None:
    source, native, x = make(9).eval(), make(12).eval(), torch.randn(2, 4)
    graph = eir.trace(source, example_inputs=(x,))
    deeper = eir.stretch(graph, to_units=12)
    native.load_state_dict(deeper.state_dict(), strict=True)
    assert torch.equal(deeper.to_module().eval()(x), native(x))
    assert eir.squeeze(deeper, to_units=9).state_dict().keys() == source.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx"])
def test_names_in_files_keep_their_padding(
    make: Callable[[int], nn.Module], suffix: str, tmp_path: Path
) -> None:
    source, path = make(9).eval(), tmp_path / f"source{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    elif suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        eir.save(eir.trace(source, example_inputs=(torch.randn(2, 4),)), path)
    deeper = eir.stretch(eir.load(path), to_units=12)
    make(12).load_state_dict(deeper.state_dict(), strict=suffix != ".onnx")
    assert make(12).state_dict().keys() <= deeper.state_dict().keys()


@pytest.mark.slow
def test_a_folder_keeps_its_padding(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(Sequence(4).state_dict(), folder / "model.safetensors")
    config = {"num_hidden_layers": 4, "not_to_convert": ["layer.03.fc", "head"]}
    (folder / "config.json").write_text(json.dumps(config))
    deeper = eir.stretch(eir.load(folder, headers_only=True), plan=[[0, 1, 2, 3, 3]])
    eir.save(deeper, tmp_path / "target")
    written = json.loads((tmp_path / "target" / "config.json").read_text())
    assert written == {
        "num_hidden_layers": 5,
        "not_to_convert": ["layer.03.fc", "layer.04.fc", "head"],
    }
    assert set(eir.load(tmp_path / "target", headers_only=True).weights) == Sequence(5).state_dict().keys()


def test_source_of_a_padded_network_runs(tmp_path: Path) -> None:
    for make in NETWORKS:
        graph = eir.stretch(eir.trace(make(3).eval(), example_inputs=(torch.randn(2, 4),)), to_units=5)
        path = tmp_path / f"{make.__name__}.py"
        eir.save(graph, path)
        assert "import" in path.read_text()


def test_one_number_written_in_two_ways_is_no_series(tmp_path: Path) -> None:
    state = {f"layer.{n}.weight": torch.zeros(8, 8) for n in ("0", "1", "01", "2")}
    torch.save(state, tmp_path / "a.pt")
    graph = eir.load(tmp_path / "a.pt")
    assert set(graph.weights) == set(state)
    with pytest.raises(StructureError, match=r"numbered in two ways \(01 and [012]\)") as said:
        eir.stretch(graph, to_units=6)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("odd", ["²", "\u0661", "9" * 5000, "1e3", "-1", "+1", "1_0"])
def test_what_only_looks_like_a_number_is_kept_as_a_name(odd: str, tmp_path: Path) -> None:
    names = [f"layers.{n}.weight" for n in ("0", "1", "2")]
    torch.save({name: torch.zeros(8, 8) for name in (*names, f"odd.{odd}.weight")}, tmp_path / "a.pt")
    deeper = eir.stretch(eir.load(tmp_path / "a.pt"), to_stages={"layers": 4})
    assert set(deeper.weights) == {*names, "layers.3.weight", f"odd.{odd}.weight"}
    torch.save({name: torch.zeros(8, 8) for name in (*names, f"layers.{odd}.weight")}, tmp_path / "b.pt")
    assert set(eir.load(tmp_path / "b.pt").weights) == {*names, f"layers.{odd}.weight"}
    with pytest.raises(StructureError):  # it is no list any more
        eir.stretch(eir.load(tmp_path / "b.pt"), to_units=5)
    for plan in (f"0,{odd}", f"0:0;{odd}:1"):
        with pytest.raises(PlanError):
            eir.stretch(eir.load(tmp_path / "a.pt"), plan=plan)


@given(st.integers(1, 6), st.lists(st.integers(0, 10**7), min_size=1), st.sampled_from(["", "a.b", "x"]))
def test_a_series_reads_what_it_writes(width: int, numbers: list[int], path: str) -> None:
    series = Series(path, "block_", width)
    for number in numbers:
        assert (
            series.number(series.name(number)) == series.number(f"{series.name(number)}.fc.weight") == number
        )
        assert series.number(f"y{series.name(number)}") is None
    found = [split_number(series.name(number)) for number in numbers]
    texts = [pair[1] for pair in found if pair is not None]
    assert len(texts) == len(numbers)
    width_found = width_of(texts)
    assert width_found is not None
    assert [Series(path, "block_", width_found).name(n) for n in numbers] == list(map(series.name, numbers))
    assert sorted(map(series.name, numbers), key=natural_key) == list(map(series.name, sorted(numbers)))


@given(st.text(max_size=5))
def test_only_ascii_digits_are_numbers(text: str) -> None:
    assert (number_of(text) is not None) == (text.isascii() and text.isdigit())
    assert not is_index(text) or str(number_of(text)) == text
