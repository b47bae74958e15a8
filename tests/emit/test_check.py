"""What `to_module` and `save` hand out: modules that run every unit, and compute what the graph says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import fx, nn

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.cli.app import elastic_ir
from elastic_ir.cli.output import show_written
from elastic_ir.emit.module.check import RunsOtherwiseError, check_module
from elastic_ir.zoo import cifar_resnet

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def block(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


class Base(nn.Module):
    """A stem, blocks in a list, and a head."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(block() for _ in range(count))
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for number, part in enumerate(self.blocks):
            x = self.step(number, part, x)
        made: torch.Tensor = self.out(x)
        return made

    def step(self, number: int, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = part(x)
        return made


class Scaled(Base):
    """A factor by the block's number, which no attribute holds."""

    def step(self, number: int, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + part(x) / (number + 1)
        return made


class Flagged(Base):
    """Something more at every third block."""

    def step(self, number: int, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x + part(x)
        return x * 2 if number == 4 else x


class Periodic(Base):
    """A residual sum at every third block, of so many as there were."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = res = self.inp(x)
        for number, part in enumerate(self.blocks):
            x = part(x)
            if number in (2, 5):
                x = res = x + res
        made: torch.Tensor = self.out(x)
        return made


class ZeroHead(Periodic):
    """The same before a last layer of zeros, behind which all networks are equal."""

    def __init__(self, count: int = 6) -> None:
        super().__init__(count)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)


class Sliced(Base):
    """A forward that runs so many blocks as there were."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for part in self.blocks[:6]:
            x = part(x)
        made: torch.Tensor = self.out(x)
        return made


class Paired(nn.Module):
    """Pairs in a list, unpacked (vit-pytorch)."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([block(4), block(4)]) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for attention, feed in self.layers:  # type: ignore[misc]
            x = attention(x) + x  # type: ignore[has-type]
            x = feed(x) + x  # type: ignore[has-type]
        return x


def longer(model: nn.Module, frontend: Frontend = "fx") -> eir.Graph:
    graph = eir.trace(model.eval(), (X,), frontend=frontend)
    stage = graph.stages[0]
    return eir.stretch(graph, to_stages={stage.name: len(stage) + 1})


@pytest.mark.parametrize("kind", [Periodic, Scaled, Flagged, ZeroHead])
def test_a_class_that_counts_its_blocks_is_not_handed_out(kind: type[Base], tmp_path: Path) -> None:
    """A GraphModule that does what the plan says takes its place."""
    torch.manual_seed(0)
    deeper = longer(kind())
    unchecked = deeper.to_module(check=False).eval()
    assert type(unchecked) is kind
    with pytest.raises(
        RunsOtherwiseError, match=f"^{kind.__name__}.forward does something else with so many blocks"
    ):
        check_module(unchecked, deeper)
    module = deeper.to_module().eval()
    assert isinstance(module, fx.GraphModule)
    assert module.state_dict().keys() == unchecked.state_dict().keys()
    if kind is not ZeroHead:
        assert not torch.allclose(module(X), unchecked(X))
    eir.save(deeper, tmp_path / "net.pt")
    again = eir.load(tmp_path / "net.pt").to_module().eval()
    assert torch.equal(again(X), module(X))


@pytest.mark.parametrize("kind", [Periodic, Scaled])
def test_an_export_takes_the_place_of_a_class_too(kind: type[Base], tmp_path: Path) -> None:
    """Its nodes are those of the other tracer; that it fixes the sizes of its inputs is said."""
    torch.manual_seed(0)
    model = kind()
    deeper = longer(model, "export")
    module = deeper.to_module().eval()
    assert isinstance(module, fx.GraphModule)
    assert torch.allclose(module(X), longer(model).to_module().eval()(X), atol=1e-6)
    assert "forward does something else" in deeper.emitted.replaced
    assert deeper.emitted.replaced.endswith("inputs of the sizes of the example inputs only")
    eir.save(deeper, tmp_path / "net.pt")
    assert torch.equal(eir.load(tmp_path / "net.pt").to_module().eval()(X), module(X))


class Named(Base):
    """A forward that takes its blocks by name."""

    def __init__(self, count: int = 3) -> None:
        super().__init__(count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third = self.blocks
        made: torch.Tensor = self.out(third(second(first(self.inp(x)))))
        return made


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize(
    ("kind", "said"), [(Sliced, "1 of 7 blocks would never run"), (Named, "does not run")]
)
@pytest.mark.slow
def test_a_forward_that_leaves_blocks_out_is_not_handed_out(
    kind: type[Base], said: str, frontend: Frontend, tmp_path: Path
) -> None:
    """A GraphModule runs them all, as a forward does that does not count."""
    torch.manual_seed(0)
    deeper = longer(kind(), frontend)
    assert isinstance(deeper.to_module(check=False), kind)
    module = deeper.to_module().eval()
    assert isinstance(module, fx.GraphModule) and said in deeper.emitted.replaced
    plain = Base(len(deeper.stages[0])).eval()
    plain.load_state_dict(module.state_dict())
    assert torch.allclose(module(X), plain(X), atol=1e-6)
    eir.save(deeper, tmp_path / "net.pt")
    assert torch.equal(eir.load(tmp_path / "net.pt").to_module().eval()(X), module(X))
    eir.save(deeper, tmp_path / "net.onnx")
    assert said in deeper.emitted.replaced


def test_pairs_in_a_list_grow_as_pairs() -> None:
    deeper = longer(Paired())
    assert type(deeper.to_module()) is Paired and not deeper.emitted.replaced


class Tabled(Base):
    """A forward that counts its blocks, and a table that is neither parameter nor buffer."""

    def __init__(self, count: int = 6) -> None:
        super().__init__(count)
        self.table = torch.ones(300, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x) + self.table[:1]
        for part in self.blocks[:6]:
            x = part(x)
        made: torch.Tensor = self.out(x)
        return made


@pytest.mark.slow
def test_where_a_graph_module_cannot_follow_either_both_reasons_are_said(tmp_path: Path) -> None:
    deeper = longer(Tabled(), "export")
    said = r"1 of 7 blocks would never run, 'blocks\.6' first.*constant tensor that is too large"
    with pytest.raises(eir.EmitError, match=said):
        deeper.to_module()
    with pytest.raises(eir.EmitError, match=said):
        eir.save(deeper, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


class Reciprocal(Base):
    """A division by what is left of a count: infinite at the sixth block, and NaN behind it."""

    def step(self, number: int, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = part(x) / (6 - number)
        return made


def test_a_class_that_returns_nan_is_not_handed_out() -> None:
    deeper = longer(Reciprocal())
    assert torch.isnan(deeper.to_module(check=False).eval()(X)).all()
    module = deeper.to_module().eval()
    assert isinstance(module, fx.GraphModule) and torch.isfinite(module(X)).all()
    assert "not finite" in deeper.emitted.replaced


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_plain_networks_pass_and_keep_their_class(frontend: Frontend) -> None:
    graph = eir.trace(Base().train(), (X,), frontend=frontend)
    deeper = eir.stretch(graph, to_stages={graph.stages[0].name: 8})
    module = deeper.to_module()
    assert type(module) is Base and module.training
    assert not deeper.emitted.unchecked


class Stateful(Base):
    """A buffer that counts the runs, and a cache that the forward fills."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: torch.Tensor
        self.register_buffer("runs", torch.zeros(3))
        self.cache: dict[str, torch.Tensor] = {}
        self.seen: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs.add_(1)
        self.cache["x"] = self.seen = x
        return super().forward(x)


def test_the_check_leaves_no_trace() -> None:
    """Buffers, caches, modes and random numbers are as if nothing had run."""
    module = Stateful()
    graph = eir.trace(module, (X,))
    before = [b.clone() for b in module.buffers()]
    state = torch.get_rng_state()
    made: Any = eir.stretch(graph, to_stages={graph.stages[0].name: 8}).to_module()
    assert torch.equal(torch.get_rng_state(), state)
    assert [b.tolist() for b in made.buffers()] == [b.tolist() for b in before]
    assert made.cache == {} and made.seen is None and made.training and not made._forward_hooks
    assert not any(part._forward_hooks for part in made.modules())


def test_what_was_not_changed_is_not_run() -> None:
    module = Base()
    graph = eir.trace(module, (X,))
    nn.init.constant_(module.out.weight, float("nan"))
    assert torch.isnan(graph.to_module()(X)).all()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_outputs_that_are_not_finite_fail(value: str, tmp_path: Path) -> None:
    """NaN always, and infinities where the source has none; nothing is written."""
    model = cifar_resnet(14, width=4)
    if value == "nan":
        nn.init.constant_(model.conv1.weight, float("nan"))  # type: ignore[union-attr, arg-type]
    graph = eir.stretch(eir.trace(model.eval()), to_depth=20)
    if value == "inf":
        graph = eir.stretch(eir.trace(model.eval()), to_depth=20, scale={"conv2": 1e38})
    said = r"output 0 of the module made holds \d+ numbers that are not finite, of 10 \((NaN|infinite, and the source)"
    with pytest.raises(eir.EmitError, match=said):
        graph.to_module()
    with pytest.raises(eir.EmitError, match=said):
        eir.save(graph, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())
    graph.to_module(check=False)


@pytest.mark.slow
def test_nan_is_no_success_on_the_command_line(tmp_path: Path) -> None:
    model = cifar_resnet(8)
    model.fc.bias.data[0] = float("nan")  # type: ignore[union-attr, operator]
    eir.save(eir.trace(model), tmp_path / "net.pt")
    out = tmp_path / "net.onnx"
    arguments = ["export", str(tmp_path / "net.pt"), "-o", str(out)]
    result = CliRunner().invoke(elastic_ir, arguments)
    assert result.exit_code == 1 and not out.exists()
    assert "output 0 of net.onnx holds 2 numbers that are not finite, of 20 (NaN)" in result.output
    assert "--no-check" in result.output
    assert CliRunner().invoke(elastic_ir, [*arguments, "--no-check"]).exit_code == 0 and out.exists()


def test_no_meta_tensor_is_handed_out() -> None:
    with torch.device("meta"):
        graph = eir.trace(cifar_resnet(14, width=4))
    with pytest.raises(eir.EmitError, match=r"'conv1\.weight' was read on the meta device and has no values"):
        graph.to_module()
    with pytest.raises(eir.EmitError, match="was read on the meta device"):
        eir.stretch(graph, to_depth=20).to_module(check=False)


class Masked(nn.Module):
    """A buffer that no state dict holds, made from what the module is made with; every second block has one."""

    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.linear = nn.Linear(width, width)
        self.mask: torch.Tensor | None
        self.register_buffer("mask", torch.arange(width) % 3 * 1.0 if shift else None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.linear(x).tanh()
        return x if self.mask is None else x + self.mask


class Shifted(nn.Module):
    def __init__(self, count: int, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Masked(width, number % 2) for number in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.blocks(x)
        return made


def test_buffers_of_a_reference_on_the_meta_device_are_copied() -> None:
    source = eir.trace(Shifted(4).eval(), (X,))
    with torch.device("meta"):
        reference = eir.trace(Shifted(8).eval(), (torch.randn(2, 4),))
    module = eir.stretch(source, like=reference).to_module()
    native = Shifted(8)
    native.load_state_dict(module.state_dict())
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert torch.equal(module(X), native(X))


class View(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Twice(Base):
    """The blocks once more, wrapped."""

    def __init__(self, count: int = 3) -> None:
        super().__init__(count)
        self.views = nn.ModuleList(View(part) for part in self.blocks)
        self.last = self.blocks[-1]  # one of them under a name of its own is no second list


def test_a_second_list_of_the_same_blocks_grows_or_is_kept() -> None:
    graph = eir.trace(Twice().eval(), (X,))
    deeper = eir.stretch(graph, to_units=4)
    module = deeper.to_module()
    assert [part.inner for part in module.views] == list(module.blocks)  # type: ignore[union-attr, arg-type]
    kept = eir.stretch(graph, to_units=4, keep_beside="views")
    assert [template.template for template in kept.stages[0].containers] == ["blocks.{i}"]
    module = kept.to_module()
    assert len(module.views) == 3  # type: ignore[arg-type]
    assert module.blocks[3][0].weight is not module.blocks[0][0].weight  # type: ignore[index, union-attr]


class Some(Base):
    """A second list of some of the blocks."""

    def __init__(self, count: int = 4) -> None:
        super().__init__(count)
        self.taps = nn.ModuleList(View(part) for part in self.blocks[::2])


def test_a_second_list_of_some_blocks_is_named(tmp_path: Path) -> None:
    graph = eir.trace(Some().eval(), (X,))
    said = "^'taps' holds the blocks of 'blocks' a second time, and would keep its 2; .*--keep-beside taps"
    with pytest.raises(eir.EmitError, match=said):
        eir.stretch(graph, to_units=5).to_module()
    with pytest.raises(eir.EmitError, match=said):
        eir.save(eir.stretch(graph, to_units=5), tmp_path / "net.pt")
    kept = eir.stretch(graph, to_units=5, keep_beside="taps")
    assert len(kept.to_module().taps) == 2  # type: ignore[arg-type]


def test_the_command_line_says_what_took_the_place_of_the_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deeper = longer(Periodic())
    show_written(deeper, eir.save(deeper, tmp_path / "net.pt"))
    said = capsys.readouterr().out
    assert "a GraphModule stands for the class: Periodic.forward does something else" in " ".join(
        said.split()
    )
    plain = longer(Base())
    show_written(plain, eir.save(plain, tmp_path / "net.pt"))
    assert "note" not in capsys.readouterr().out


class Dropping(Base):
    """Dropout as a function, which a trace in training bakes in."""

    def step(self, number: int, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.dropout(part(x), 0.5, self.training).detach() * 2


def test_a_trace_in_training_is_no_difference() -> None:
    graph = eir.trace(Dropping().train(), (X,))
    module = eir.stretch(graph, to_units=8).to_module()
    assert type(module) is Dropping and module.training


def test_a_trace_in_training_hides_no_difference() -> None:
    class Odd(Dropping):
        def step(self, number: int, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return super().step(number, part, x) * (number + 1)

    graph = eir.trace(Odd().train(), (X,))
    assert isinstance(eir.stretch(graph, to_units=8).to_module(), fx.GraphModule)


class Remembering(Base):
    """Blocks that read what enters the first one, beside what flows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = memory = self.inp(x)
        for part in self.blocks:
            x = torch.sub(part(memory), x) * 0.5 + memory
        made: torch.Tensor = self.out(x)
        return made


@pytest.mark.parametrize("plan", ["0,1,2,0,1", "0,0,1,1,2", "1,2,1", "1,1", "2,0", "2,1,0", "0,2"])
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_what_stays_for_all_blocks_stays_for_copies_of_the_first(frontend: Frontend, plan: str) -> None:
    """One value is the first block's input and what all blocks read; a copy reads each in its place."""
    source = Remembering(3).eval()
    graph = eir.trace(source, (X,), frontend=frontend)
    module = eir.stretch(graph, plan=plan).to_module()
    assert type(module) is Remembering
    x = memory = source.inp(X)
    for number in plan.split(","):
        x = torch.sub(source.blocks[int(number)](memory), x) * 0.5 + memory
    torch.testing.assert_close(module(X), source.out(x))
