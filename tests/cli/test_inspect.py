"""What ``inspect`` prints of known networks, letter by letter, and that its rows add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import elastic_ir as eir
from elastic_ir.analysis.summary import summarise
from elastic_ir.cli.app import elastic_ir
from elastic_ir.zoo import cifar_resnet

GOLDEN = Path(__file__).with_name("inspect")


def inspect(*arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(elastic_ir, ["inspect", *arguments], prog_name="elastic-ir")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text()


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(20)


def masks_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Three quarters pruned in the first stage, half in the others, nothing in stem and head."""
    masks = {}
    for name, weight in model.named_parameters():
        if name.startswith("layer") and weight.dim() > 1:
            mask = torch.ones(weight.numel())
            mask[::2] = 0
            if name.startswith("layer1"):
                mask[1::4] = 0
            masks[name] = mask.reshape(weight.shape)
    return masks


def test_a_resnet_with_and_without_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = resnet20()
    eir.save(eir.trace(model), "dense.pt")
    eir.save(eir.trace(model, masks=masks_of(model)), "ticket.pt")
    assert inspect("dense.pt") == golden("resnet20")
    assert inspect("ticket.pt") == golden("resnet20-masked")


def test_a_bare_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names do not tell is left out; a file sorted by name tells the same."""
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), "mobilenet_v2.pth")
    assert inspect("mobilenet_v2.pth") == golden("state-dict")
    save_file(torch.load("mobilenet_v2.pth"), "mobilenet_v2.safetensors")
    found = inspect("mobilenet_v2.safetensors").replace(".safetensors", ".pth")
    assert found == golden("state-dict")


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "swin_t", "vit_b_16"])
def test_published_networks(name: str) -> None:
    assert inspect(f"torchvision:{name}") == golden(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", "resnet18", "mobilenet_v2"])
def test_names_and_nodes_share_the_weights_out_alike(name: str, tmp_path: Path) -> None:
    """The same rows from a trace, from a state dict, and from a file sorted by name."""
    model = torchvision.models.get_model(name, weights=None)
    state = {key: tensor for key, tensor in model.state_dict().items() if "index" not in key}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    traced = [(row.kind, row.name, row.parameters, row.layers) for row in summarise(eir.trace(model))]
    for file in ("a.pt", "a.safetensors"):
        found = summarise(eir.load(tmp_path / file))
        learned = {name for name, _ in model.named_parameters()}
        assert [row.name for row in found] == [name for _, name, _, _ in traced]
        if {
            name for row in found for name in row.weights
        } <= learned:  # no buffers to be taken for parameters
            assert [(row.kind, row.name, row.parameters, row.layers) for row in found] == traced


class Tokens(nn.Module):
    """A block over (batch, tokens, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.mix(self.norm(x))
        return result


class Waves(nn.Module):
    """A block over (batch, channels, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.mix(x)
        return result


class Windows(nn.Module):
    """A block over (batch, height, width, channels) whose layers only ever see windows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = x.reshape(-1, 4, 6)
        result: torch.Tensor = x + self.mix(windows).reshape(x.shape[0], x.shape[1], x.shape[2], 6)
        return result


@pytest.mark.parametrize(
    ("block", "shape", "text"),
    [
        (Tokens, (2, 9, 6), "6 @ 9 tokens"),
        (Tokens, (2, 4, 8, 6), "6 @ 4x8"),
        (Waves, (2, 6, 9), "6 @ 9"),
        (Windows, (2, 4, 8, 6), "6 @ 4x8"),
        (lambda: nn.Linear(6, 6), (2, 6), "6"),
        (lambda: nn.Conv2d(6, 6, 3, padding=1), (2, 6, 4, 8), "6 @ 4x8"),
        (lambda: nn.Conv3d(6, 6, 3, padding=1), (2, 6, 4, 8, 2), "6 @ 4x8x2"),
    ],
)
def test_the_channel_axis_shows_in_the_layers(
    block: Callable[[], nn.Module], shape: tuple[int, ...], text: str
) -> None:
    graph = eir.trace(nn.Sequential(*(block() for _ in range(3))), torch.randn(shape))
    assert [str(row.activation) for row in summarise(graph) if row.stage is not None] == [text]


@pytest.mark.slow
def test_rows_follow_a_stretch(tmp_path: Path) -> None:
    """Types, transitions and sums are those of the new network, also where one container holds all of it."""
    deeper = eir.stretch(eir.trace(torchvision.models.swin_t(weights=None)), to_stages=(2, 4, 6, 2))
    rows = summarise(deeper)
    assert [row.name for row in rows if row.kind == "transition"] == [
        "features.2",
        "features.4",
        "features.6",
    ]
    assert {row.type for row in rows if row.kind == "transition"} == {"PatchMerging"}
    flat = eir.stretch(
        eir.trace(torchvision.models.mobilenet_v2(weights=None)), to_stages=(1, 3, 3, 4, 3, 3, 1)
    )
    assert {row.type for row in summarise(flat) if row.kind == "stage"} == {"InvertedResidual"}
    for graph in (deeper, flat):
        assert sum(row.parameters for row in summarise(graph)) == graph.parameter_count()
        assert {name for row in summarise(graph) for name in row.weights} == set(graph.weights)


class Tied(nn.Module):
    """An embedding that is also the head, and a weight that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.blocks = nn.Sequential(Tokens(), Tokens())
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight
        self.spare = nn.Parameter(torch.zeros(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.blocks(self.embed(x)))
        return result


@pytest.mark.slow
def test_tied_weights_count_once_and_idle_ones_are_shown() -> None:
    graph = eir.trace(Tied(), torch.ones(1, 4, dtype=torch.long))
    found = {row.name: row.parameters for row in summarise(graph)}
    assert found == {"stem": 60, "blocks": 2 * (12 + 42), "head": 0, "never read": 7}
    assert sum(found.values()) == graph.parameter_count()


def test_json_says_what_the_table_says() -> None:
    found = json.loads(inspect("torchvision:swin_t", "--json", "--input-shape", "1,3,64,64"))
    stage = found["stages"][2]
    assert (stage["type"], stage["channels"], stage["resolution"]) == ("SwinTransformerBlock", 384, [4, 4])
    assert (stage["tokens"], stage["unit"], stage["stage_layers"], stage["layers"]) == (None, 2, 24, 8)
    assert stage["depth_share"] == pytest.approx(24 / 53)
    assert [row["kind"] for row in found["rows"]] == ["stem", "stage", *["transition", "stage"] * 3, "head"]
    assert [row["modules"] for row in found["rows"] if row["kind"] == "transition"] == [
        ["features.2"], ["features.4"], ["features.6"],
    ]  # fmt: skip
    assert sum(row["parameters"] for row in found["rows"]) == found["parameters"]
    assert sum(row["layers"] for row in found["rows"]) == found["depth"]
    assert found["frontend"] == "fx"


def test_the_readme_shows_what_is_printed() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"$ elastic-ir inspect torchvision:swin_t\n{golden('swin_t')}```" in readme
    shown = readme.partition("$ elastic-ir inspect mobilenet_v2.pth\n")[2].partition("...\n")[0]
    assert [line for line in shown.splitlines() if line not in golden("state-dict").splitlines()] == []


@pytest.mark.slow
def test_an_exported_network_is_shown_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.export warns of TinyViT's caches; nothing of it reaches the terminal, from Python or from below it."""
    found = inspect("timm:tiny_vit_5m_224")
    assert "found from: graph (torch.export)\n" in found
    assert "320 @ 7x7" in found  # whose layers only see windows
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_single_block_of_a_pair_is_asked_for_on_the_command_line() -> None:
    source = "timm:swin_tiny_patch4_window7_224"
    plan = ("--plan", "0,1|0,1|0-2,4,5|0,1", "--dry-run")
    refused = CliRunner().invoke(elastic_ir, ["squeeze", source, *plan], prog_name="elastic-ir")
    assert refused.exit_code == 1
    assert "2 blocks make a unit" in refused.stderr
    assert "--unit 1" in refused.stderr
    done = CliRunner().invoke(elastic_ir, ["squeeze", source, "--unit", "1", *plan], prog_name="elastic-ir")
    assert done.exit_code == 0, done.output
    assert "note:       layers.0.blocks" in done.stdout
    assert "depth:      53 -> 49" in done.stdout
