"""compact: what is cut, what is kept, and that the function in evaluation stays as it was."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.analysis.cost import compare_costs
from elastic_ir.passes import Compact
from elastic_ir.tensors.recipes import Selected
from elastic_ir.zoo import cifar_resnet
from tests.passes.pruned import dead_filters, pruned, same_function


def compact(graph: eir.Graph) -> eir.Graph:
    return Compact().run(graph)


def small() -> tuple[eir.Graph, Tensor]:
    """Filter 1 of the first convolution is dead, and output 0 of the second reads channel 0 only."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    ).double()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.1, 0.7, -0.2, 0.3]))  # type: ignore[operator]
    x = torch.randn(2, 2, 5, 5, dtype=torch.double)
    first, second = torch.ones(4, 2, 3, 3), torch.ones(3, 4, 1, 1)
    first[1] = 0
    second[:, 2] = 0
    return eir.trace(model.eval(), (x,), masks={"0.weight": first, "3.weight": second}), x


GOLDEN = """\
-   @0.weight : f64[4, 2, 3, 3] mask(18 of 72 pruned)
+   @0.weight : f64[2, 2, 3, 3] mask(0 of 36 pruned)
-   @1.weight : f64[4]
+   @1.weight : f64[2]
-   @1.bias : f64[4]
+   @1.bias : f64[2]
-   @1.running_mean : f64[4] buffer
+   @1.running_mean : f64[2] buffer
-   @1.running_var : f64[4] buffer
+   @1.running_var : f64[2] buffer
-   @3.weight : f64[3, 4, 1, 1] mask(3 of 12 pruned)
+   @3.weight : f64[3, 2, 1, 1] mask(0 of 6 pruned)
-   %_0 = nn.Conv2d(%input) {in_channels=2, out_channels=4, kernel_size=(3, 3), stride=(1, 1), \
padding=(1, 1), dilation=(1, 1), groups=1, bias=False, padding_mode='zeros'} in 0 : f64[2, 4, 5, 5]
+   %_0 = nn.Conv2d(%input) {in_channels=2, out_channels=2, kernel_size=(3, 3), stride=(1, 1), \
padding=(1, 1), dilation=(1, 1), groups=1, bias=False, padding_mode='zeros'} in 0 : f64[2, 2, 5, 5]
-   %_1 = nn.BatchNorm2d(%_0) {num_features=4, eps=1e-05, momentum=0.1, affine=True, \
track_running_stats=True, bias=True} in 1 : f64[2, 4, 5, 5]
+   %_1 = nn.BatchNorm2d(%_0) {num_features=2, eps=1e-05, momentum=0.1, affine=True, \
track_running_stats=True, bias=True} in 1 : f64[2, 2, 5, 5]
-   %_2 = nn.ReLU(%_1) {inplace=False} in 2 : f64[2, 4, 5, 5]
+   %_2 = nn.ReLU(%_1) {inplace=False} in 2 : f64[2, 2, 5, 5]
-   %_3 = nn.Conv2d(%_2) {in_channels=4, out_channels=3, kernel_size=(1, 1), stride=(1, 1), padding=(0, \
0), dilation=(1, 1), groups=1, bias=False, padding_mode='zeros'} in 3 : f64[2, 3, 5, 5]
+   %_3 = nn.Conv2d(%_2) {in_channels=2, out_channels=3, kernel_size=(1, 1), stride=(1, 1), padding=(0, \
0), dilation=(1, 1), groups=1, bias=False, padding_mode='zeros'} in 3 : f64[2, 3, 5, 5]
"""


def test_golden_text() -> None:
    """Channel 1 is a constant that the second norm's mean takes over, channel 2 is read by nobody."""
    graph, x = small()
    done = compact(graph)
    before, after = (str(g).splitlines() for g in (graph, done))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    assert "\n".join(changed) + "\n" == GOLDEN
    same_function(graph, done, x)
    assert done.history.reports["compact"]["layers"] == {"0": [2, 2, 4, 2], "3": [4, 2, 3, 3]}
    assert done.state_dict()["4.running_mean"].count_nonzero() == 3  # it was zero


def test_nothing_dead_changes_nothing() -> None:
    graph = eir.trace(cifar_resnet(14, width=4).eval(), (torch.zeros(1, 3, 8, 8),))
    done = compact(graph)
    assert str(done) == str(graph)
    left, right = graph.state_dict(), done.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_tensors_stay_lazy() -> None:
    """A cut weight is a recipe over the source's own tensor."""
    graph, _ = small()
    data = compact(graph).weights["0.weight"].storage.data
    assert isinstance(data, Selected)
    assert data.data is graph.weights["0.weight"].storage.data


class Bits(nn.Module):
    """One output is one product, so that no sum can be done in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(1, 6, bias=False), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def test_bit_equal_where_the_arithmetic_permits() -> None:
    torch.manual_seed(1)
    mask, x = torch.ones(6, 1), torch.randn(5, 1)
    mask[[1, 4]] = 0
    keep = torch.eye(6)
    keep[2, 5] = 0
    graph = eir.trace(Bits().eval(), (x,), masks={"up.weight": mask, "down.weight": keep})
    done = compact(graph)
    assert done.weights["up.weight"].shape == (4, 1)
    assert torch.equal(done.to_module()(x), graph.to_module()(x))


def test_an_mlp_of_three_dimensions() -> None:
    """A transformer's feed-forward part: units, and constants through GELU."""
    torch.manual_seed(0)
    graph, x = pruned(nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 5)), (2, 7, 5))
    done = compact(graph)
    hidden = int(graph.masks()["0.weight"].any(1).sum())
    assert done.weights["0.weight"].shape == (hidden, 5)
    assert done.weights["2.weight"].shape == (5, hidden)
    same_function(graph, done, x)


class Padded(nn.Module):
    """A dead filter whose constant a convolution with padding reads; the mode is what decides."""

    def __init__(self, mode: str, bias: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode, bias=bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.two(torch.sigmoid(self.one(x))))


@pytest.mark.parametrize(("mode", "width"), [("zeros", 4), ("reflect", 3), ("replicate", 3), ("circular", 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_beside_a_border_of_zeros_is_kept(mode: str, width: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = Padded(mode, bias).double().eval()
    mask, x = torch.ones_like(model.one.weight), torch.randn(2, 2, 6, 6, dtype=torch.double)
    mask[2] = 0
    graph = eir.trace(model, (x,), masks={"one.weight": mask})
    done = compact(graph)
    assert done.weights["two.weight"].shape[1] == width
    assert ("two.bias" in done.weights) == (bias or mode != "zeros")
    assert done.history.reports["compact"]["constant"] == ({"one": 1} if mode == "zeros" else {})
    module = same_function(graph, done, x)
    assert list(dict(module.named_parameters())) == list(done.weights)


class Stream(nn.Module):
    """A residual stream; both blocks and the stem have to drop a channel before it can go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.one(x))
        x = x + torch.relu(self.two(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(("dead", "width"), [(("stem", "one", "two"), 3), (("stem", "two"), 4)])
def test_a_stream_s_channel_goes_when_all_its_producers_are_dead(dead: tuple[str, ...], width: int) -> None:
    torch.manual_seed(0)
    model, x = Stream().double().eval(), torch.randn(1, 3, 6, 6, dtype=torch.double)
    masks = {f"{name}.weight": torch.ones_like(getattr(model, name).weight) for name in dead}
    for mask in masks.values():
        mask[1] = 0
    graph = eir.trace(model, (x,), masks=masks)
    done = compact(graph)
    assert done.weights["head.weight"].shape == (2, width)
    assert done.weights["one.weight"].shape[:2] == (width, width)
    same_function(graph, done, x)


def test_a_channel_that_nothing_reads_goes_with_its_producers() -> None:
    """Columns, not rows, are masked; the channel circles through the stream, and still leads nowhere."""
    torch.manual_seed(0)
    model, x = Stream().double().eval(), torch.randn(1, 3, 6, 6, dtype=torch.double)
    masks = {
        f"{name}.weight": torch.ones_like(getattr(model, name).weight) for name in ("one", "two", "head")
    }
    for name, mask in masks.items():
        mask[:, 3] = 0
        if name != "head.weight":
            mask[3, 3] = 1  # it reads itself
    graph = eir.trace(model, (x,), masks=masks)
    done = compact(graph)
    assert done.weights["stem.weight"].shape == (3, 3, 1, 1)
    same_function(graph, done, x)


@pytest.mark.parametrize(("inputs", "groups"), [((0, 1), 2), ((0,), 3), ((0, 2, 4), 3)])
def test_grouped_convolutions_keep_groups_of_one_size(inputs: tuple[int, ...], groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1, bias=False), nn.Conv2d(6, 6, 3, groups=3, bias=False), nn.Conv2d(6, 2, 1)
    ).double()
    x, mask = torch.randn(1, 2, 5, 5, dtype=torch.double), torch.ones(6, 2, 1, 1)
    mask[list(inputs)] = 0
    graph = eir.trace(model.eval(), (x,), masks={"0.weight": mask})
    done = compact(graph)
    module = same_function(graph, done, x)
    assert module[1].groups == groups  # type: ignore[index]
    assert module[1].in_channels == {2: 4, 3: 6 if inputs == (0,) else 3}[groups]  # type: ignore[index]


def test_transposed_convolutions_lose_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 6, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),
        nn.Conv2d(4, 2, 1),
    ).double()
    masks = {"0.weight": torch.ones(2, 6, 3, 3), "3.weight": torch.ones(2, 4, 1, 1)}
    masks["0.weight"][:, [1, 4]] = 0  # one channel of each group
    masks["3.weight"][:, [0, 3]] = 0
    with torch.no_grad():
        model.get_parameter("0.bias")[[1, 4]] = -1.0
    x = torch.randn(1, 2, 5, 5, dtype=torch.double)
    graph = eir.trace(model.eval(), (x,), masks=masks)
    done = compact(graph)
    module = same_function(graph, done, x)
    assert [done.weights[f"{at}.weight"].shape[:2] for at in (0, 2, 3)] == [(2, 4), (4, 1), (2, 2)]
    second = module.get_submodule("2")
    assert isinstance(second, nn.ConvTranspose2d)
    assert (second.in_channels, second.out_channels) == (4, 2)


class Viewed(nn.Module):
    """A forward that counts channels by a literal: nothing before it may be cut."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.one, self.two, self.literal = nn.Conv2d(2, 4, 3), nn.Linear(64, 3), literal

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        out: Tensor = self.two(y.view(-1, 64) if self.literal else y.view(y.size(0), -1))
        return out


@pytest.mark.parametrize(("literal", "shape"), [(True, (3, 64)), (False, (3, 48))])
def test_what_is_not_understood_is_kept(literal: bool, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, x = Viewed(literal).double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.double)
    mask = torch.ones_like(model.one.weight)
    mask[1] = 0
    graph = eir.trace(model, (x,), masks={"one.weight": mask})
    done = compact(graph)
    assert done.weights["two.weight"].shape == shape
    same_function(graph, done, x)


def test_all_dead_leaves_one_channel() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(2, 3, dtype=torch.double)
    graph = eir.trace(model, (x,), masks={"0.weight": torch.zeros(4, 3), "2.weight": torch.ones(2, 4)})
    done = compact(graph)
    assert [done.weights[f"{n}.weight"].shape for n in (0, 2)] == [(1, 3), (2, 1)]
    same_function(graph, done, x)


def test_costs() -> None:
    graph, _ = small()
    change = compare_costs(graph, compact(graph))
    assert change.before.parameters > change.after.parameters
    assert change.after.flops == 2 * (2 * 25 * 2 * 18 + 2 * 25 * 3 * 2 + 2 * 6)
    assert str(change).splitlines()[0].startswith("parameters: 106 -> 60")


def test_a_network_on_the_meta_device() -> None:
    """Only shapes are known; norms may give anything, so nothing behind one is cut."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).eval()
        x = torch.zeros(1, 3)
    mask = torch.ones(4, 3)
    mask[0] = 0
    done = compact(eir.trace(model, (x,), masks={"0.weight": mask}))
    assert done.weights["0.weight"].shape == (3, 3)
    with pytest.raises(eir.EmitError, match="read on the meta device"):  # no such tensor is handed out
        done.to_module()


def test_a_network_in_which_nothing_repeats(tmp_path: Path) -> None:
    """It has no stages, which is no reason not to compact, emit and write it."""
    graph, x = small()
    eir.save(compact(graph), tmp_path / "small.pt")
    again = eir.load(tmp_path / "small.pt")
    with torch.no_grad():
        torch.testing.assert_close(again.to_module().eval()(x), graph.to_module().eval()(x))


def test_bare_weights_are_refused(tmp_path: Path) -> None:
    torch.save(cifar_resnet(14, width=4).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(eir.PlanError, match=r"compact has to see what reads what; pass --arch"):
        compact(eir.load(tmp_path / "bare.pt"))


def test_an_exported_program_is_refused() -> None:
    graph = eir.trace(cifar_resnet(14, width=4).eval(), (torch.zeros(1, 3, 8, 8),), frontend="export")
    with pytest.raises(eir.PlanError, match=r"whose layers compact cannot change; export it as ONNX"):
        compact(graph)


class Auxiliary(nn.Module):
    """A second head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        out: Tensor = self.two(y) + self.other(y) if self.training else self.two(y)
        return out


def test_layers_that_were_not_run_are_refused() -> None:
    model = Auxiliary().eval()
    graph = eir.trace(model, (torch.zeros(1, 3),), masks=dead_filters(model))
    with pytest.raises(eir.PlanError, match=r"'other\.weight' for example"):
        compact(graph)


def test_a_layer_that_runs_twice_is_left_alone() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2)).double().eval()
    mask, x = torch.ones(4, 4), torch.randn(2, 4, dtype=torch.double)
    mask[1] = 0
    graph = eir.trace(model, (x,), masks={"0.weight": mask})
    done = compact(graph)
    assert done.weights["0.weight"].shape == (4, 4)
    same_function(graph, done, x)
