"""nm-project: every group of M weights along the input keeps at most N."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.passes import Compact, NMProject
from elastic_ir.tensors.nm_mask import PatternMask
from elastic_ir.zoo import cifar_resnet
from tests.passes.pruned import same_function


def groups(tensor: Tensor, m: int) -> Tensor:
    """As apex lays them out: convolutions with the input channels last."""
    return tensor.movedim(1, -1).reshape(-1, m)


def random_ticket(seed: int = 0) -> tuple[eir.Graph, dict[str, Tensor]]:
    torch.manual_seed(seed)
    model = cifar_resnet(14, width=16)
    masks = {
        f"{path}.weight": (torch.rand_like(module.weight) < 0.6).float()
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    return eir.trace(model.eval(), (torch.zeros(1, 3, 16, 16),), masks=masks), masks


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_every_group_holds_and_nothing_revives(n: int, m: int) -> None:
    graph, masks = random_ticket()
    done = NMProject(n=n, m=m).run(graph)
    report = done.history.reports["nm-project"]
    assert len(report["projected"]) == 14  # twelve convolutions of blocks and two projections
    state = done.state_dict()
    for name in report["projected"]:
        kept, old, weight = done.masks()[name], masks[name], graph.weights[name]
        counts = groups(kept, m).sum(1)
        assert counts.max() <= n
        assert not kept[old == 0].any()
        # as many as the old mask leaves, and never one that is smaller than one that goes
        assert torch.equal(counts, groups(old, m).sum(1).clamp(max=n))
        assert not state[name][kept == 0].any()
        values = (graph.state_dict(masked=False)[name] * old).abs()
        least = groups(torch.where(kept == 1, values, torch.inf), m).amin(1)
        most = groups(torch.where((kept == 0) & (old == 1), values, -1.0), m).amax(1)
        assert (least >= most).all()
        assert kept.dtype == old.dtype and weight.mask is not None
    assert report["skipped"] == {
        "conv1.weight": f"3 inputs are not a multiple of {m}",
        "fc.weight": "10 outputs are not a multiple of 8",
    }


def test_as_apex_does_it() -> None:
    """The best 2:4 patterns by the sum of magnitudes, as ``m4n2_1d`` finds them by trying all six."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8, 16), nn.Linear(16, 8)).eval()
    done = NMProject().run(eir.trace(model, (torch.zeros(2, 16, 3, 3),), masks={}))
    bits = [torch.tensor([0.0, 1.0])] * 4
    patterns = torch.stack([p for p in torch.cartesian_prod(*bits) if p.sum() == 2])
    for name, mask in done.masks().items():
        weight = model.state_dict()[name].movedim(1, -1)
        best = patterns[(weight.abs().reshape(-1, 4) @ patterns.T).argmax(1)].reshape(weight.shape)
        assert torch.equal(mask.float(), best.movedim(-1, 1))


def test_ties_go_to_the_first() -> None:
    layer = nn.Linear(4, 2, bias=False)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.weight[1, 3] = -2
    graph = eir.trace(nn.Sequential(layer), (torch.zeros(1, 4),))
    mask = NMProject(rows=1, columns=4).run(graph).masks()["0.weight"]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 1]]


def test_sizes_and_names_decide() -> None:
    """Depthwise convolutions, odd heads and what was excluded stay dense, and the report says why."""
    model = nn.Sequential(
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 1, groups=16),
        nn.Conv2d(16, 24, 1),
        nn.ConvTranspose2d(24, 16, 1),
    )
    graph = eir.trace(model.eval(), (torch.zeros(1, 16, 2, 2),))
    report = NMProject(skip=["2"]).run(graph).history.reports["nm-project"]
    assert report["projected"] == ["0.weight"]
    assert report["skipped"] == {
        "1.weight": "1 inputs are not a multiple of 4",
        "2.weight": "skipped as asked",
        "3.weight": "nn.ConvTranspose2d may store its weight another way round",
    }
    assert NMProject(skip="*.weight").run(graph).sparsity() == 0


def test_masks_are_worked_out_when_they_are_read() -> None:
    graph, _ = random_ticket()
    done = NMProject().run(graph)
    mask = done.weights["layer1.0.conv1.weight"].mask
    assert isinstance(mask, PatternMask)
    assert "bits" not in vars(mask)
    assert mask.zeros * 2 >= mask.size
    assert "bits" in vars(mask)


def test_a_bare_state_dict_and_files(tmp_path: Path) -> None:
    """Names and shapes are enough, and the masks are written with the weights."""
    torch.save(cifar_resnet(14, width=16).state_dict(), tmp_path / "bare.pt")
    done = NMProject().run(eir.load(tmp_path / "bare.pt"))
    eir.save(done, tmp_path / "out.safetensors")
    again = eir.load(tmp_path / "out.safetensors")
    assert again.sparsity() == done.sparsity() > 0.49
    deeper = eir.stretch(done, to_stages=(3, 3, 3))
    assert groups(deeper.masks()["layer1.2.conv1.weight"].int(), 4).sum(1).max() == 2


def test_a_pattern_is_compacted_like_any_mask() -> None:
    graph, masks = random_ticket()
    masks["layer1.0.conv1.weight"][:8] = 0
    assert graph.origin.module is not None
    graph = eir.trace(graph.origin.module.double(), (torch.zeros(1, 3, 16, 16).double(),), masks=masks)
    done = NMProject().run(graph)
    small = Compact().run(done)
    assert small.weights["layer1.0.conv1.weight"].shape == (8, 16, 3, 3)
    same_function(done, small, torch.randn(2, 3, 16, 16, dtype=torch.double))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 4, "m": 4}, "n=4 m=4 is not a pattern"),
        ({"n": 0}, "n=0 m=4 is not a pattern"),
        ({"rows": 0}, "rows and columns are multiples"),
        ({"skip": ["fc.wight"]}, "skip='fc.wight' fits no weight"),
    ],
)
def test_wrong_options(options: dict[str, object], said: str) -> None:
    graph, _ = random_ticket()
    with pytest.raises(eir.PlanError, match=said):
        NMProject(**options).run(graph)  # type: ignore[arg-type]
