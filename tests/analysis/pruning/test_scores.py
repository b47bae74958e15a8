"""Scores at a rewind point against small computations of their own: differences, a Hessian, a sum over paths."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_ir.analysis.pruning.scores import grasp_scores, snip_scores, synflow_masks, synflow_scores
from elastic_ir.errors import MaskError
from elastic_ir.tickets import magnitude_masks, sparsity
from elastic_ir.tickets.magnitude import masks_from_scores
from elastic_ir.zoo import cifar_resnet, cifar_vgg


def batches(
    shape: tuple[int, ...], sizes: tuple[int, ...] = (4, 6), classes: int = 3
) -> list[tuple[Tensor, Tensor]]:
    dice = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, *shape, generator=dice), torch.randint(classes, (n,), generator=dice)) for n in sizes
    ]


def small(bias: bool = True, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, bias=bias), activation(), nn.Linear(5, 3, bias=bias))


def test_snip_of_a_linear_model_in_closed_form() -> None:
    """Squared error of one linear layer: the gradient is 2/(n k) (x W' - y)' x."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    data = [(torch.randn(5, 4), torch.randn(5, 3)), (torch.randn(7, 4), torch.randn(7, 3))]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    expected = (2 / y.numel() * (x @ model.weight.T - y).T @ x * model.weight).abs()
    found = snip_scores(model, data, F.mse_loss)
    torch.testing.assert_close(found["weight"], expected.detach().double(), rtol=1e-5, atol=1e-7)


def test_snip_is_the_loss_s_slope_in_each_connection() -> None:
    """The definition: d L(c * w) / d c at c = 1, by central differences."""
    model = small().double()
    data = [(x.double(), y) for x, y in batches((4,))]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    scores = snip_scores(model, data, F.cross_entropy)
    assert list(scores) == ["0.weight", "2.weight"]
    step = 1e-5
    for name, score in scores.items():
        weight = model.get_parameter(name).detach()
        for at in itertools.product(*(range(extent) for extent in weight.shape)):
            value, losses = weight[at].item(), []
            for factor in (1 + step, 1 - step):
                weight[at] = value * factor
                losses.append(F.cross_entropy(model(x), y).item())
            weight[at] = value
            assert score[at].item() == pytest.approx(abs(losses[0] - losses[1]) / (2 * step), abs=1e-8)


def test_grasp_is_the_hessian_gradient_product() -> None:
    model = small().double()
    data = [(x.double(), y) for x, y in batches((4,))]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    names = ["0.weight", "2.weight"]
    sizes = [20, 15]
    biases = {n: p.detach() for n, p in model.named_parameters() if n not in names}

    def loss(flat: Tensor) -> Tensor:
        first, second = torch.split(flat, sizes)
        hidden = torch.tanh(x @ first.reshape(5, 4).T + biases["0.bias"])
        return F.cross_entropy((hidden @ second.reshape(3, 5).T + biases["2.bias"]) / 3.0, y)

    theta = torch.cat([model.get_parameter(n).detach().reshape(-1) for n in names])
    gradient = torch.func.grad(loss)(theta)
    hessian = torch.func.hessian(loss)(theta)
    expected = theta * (hessian @ gradient)
    scores = grasp_scores(model, data, F.cross_entropy, temperature=3.0)
    torch.testing.assert_close(torch.cat([scores[n].reshape(-1) for n in names]), expected)
    assert (expected < 0).any()
    assert (expected > 0).any()


def test_grasp_keeps_the_gradient_flow_that_its_inverse_destroys() -> None:
    """The sign: pruning what GraSP prunes leaves a larger gradient norm than pruning the opposite."""
    model = small().double()
    data = [(x.double(), y) for x, y in batches((4,), (40,))]
    scores = grasp_scores(model, data, F.cross_entropy, temperature=1.0)
    norms = []
    for sign in (1, -1):
        masks = masks_from_scores({n: sign * s for n, s in scores.items()}, 3)
        state = {n: p.detach() * masks.get(n, 1) for n, p in model.named_parameters()}
        leaves = {n: p.requires_grad_() for n, p in state.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, (data[0][0],)), data[0][1])
        gradients = torch.autograd.grad(loss, [leaves[n] for n in scores])
        norms.append(
            sum((g * masks[n]).square().sum().item() for n, g in zip(scores, gradients, strict=True))
        )
    assert norms[0] > norms[1]


def paths(model: nn.Sequential) -> dict[str, Tensor]:
    """For each weight the sum over all paths through it of the products of |w|, path by path."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    names = [f"{i}.weight" for i, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    sums = {
        name: torch.zeros_like(layer.weight, dtype=torch.float64)
        for name, layer in zip(names, layers, strict=True)
    }
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    for path in itertools.product(*(range(width) for width in widths)):
        product = 1.0
        for layer, (source, target) in zip(layers, itertools.pairwise(path), strict=True):
            product *= abs(layer.weight[target, source].item())
        for name, (source, target) in zip(names, itertools.pairwise(path), strict=True):
            sums[name][target, source] += product
    return sums


def relu_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4, bias=False),
        nn.ReLU(),
        nn.Linear(4, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 2, bias=False),
    )


def test_synflow_is_the_sum_over_paths() -> None:
    model = relu_net()
    scores = synflow_scores(model, (3,))
    for name, expected in paths(model).items():
        torch.testing.assert_close(scores[name], expected)


@pytest.mark.slow
def test_synflow_is_conserved_through_neurons_and_layers() -> None:
    """Tanaka et al., theorems 1 and 2: what flows into a hidden neuron flows out, and layers have equal sums."""
    scores = synflow_scores(relu_net(), (3,))
    torch.testing.assert_close(scores["0.weight"].sum(1), scores["2.weight"].sum(0))
    torch.testing.assert_close(scores["2.weight"].sum(1), scores["4.weight"].sum(0))
    convolutions = synflow_scores(cifar_vgg(13), (3, 32, 32))
    sums = torch.stack([score.sum() for name, score in convolutions.items() if "classifier" not in name])
    # biases and shifts are zero at the start; norms only scale, so that layers still agree
    torch.testing.assert_close(sums, sums[:1].expand_as(sums))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
def test_norms_are_linear_for_synflow(norm: nn.Module) -> None:
    """With trained statistics, too: doubling all weights before a norm doubles the flow."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2, bias=False)
    )
    nn.init.normal_(model[1].weight)  # type: ignore[arg-type]
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(0.1, 2)
        norm.running_var.uniform_(0.1, 2)
    before = synflow_scores(model, (2, 6, 6))
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(-2)
    after = synflow_scores(model, (2, 6, 6))
    torch.testing.assert_close(after["0.weight"], 2 * before["0.weight"])
    torch.testing.assert_close(after["4.weight"], 2 * before["4.weight"])
    assert all((score > 0).all() for score in after.values())


def test_layer_norms_are_linear_for_synflow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2, bias=False)
    )
    plain = nn.Sequential(model[0], model[2], model[3])
    expected = synflow_scores(plain, (3,))
    found = synflow_scores(model, (3,))
    torch.testing.assert_close(found["0.weight"], expected["0.weight"])
    torch.testing.assert_close(found["3.weight"], expected["2.weight"])


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU])
def test_activations_of_relu_s_kind_are_relu_for_synflow(activation: Callable[[], nn.Module]) -> None:
    """ReLU6 would end all paths that exceed 6, and a network of them would get scores of zero."""
    model = small(bias=False)
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(100)
    model[1] = nn.ReLU()
    expected = synflow_scores(model, (4,))
    model[1] = activation()
    for name, score in synflow_scores(model, (4,)).items():
        torch.testing.assert_close(score, expected[name])
        assert (score > 0).all()


@pytest.mark.filterwarnings("ignore:.*nested_tensor.*")
def test_a_transformer_is_scored() -> None:
    """Fused attention has no second derivative on the CPU; GraSP takes it apart."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.Flatten(), nn.Linear(48, 3))
    data = batches((6, 5))
    for scores in (
        snip_scores(model, data, F.cross_entropy),
        grasp_scores(model, data, F.cross_entropy),
        synflow_scores(model, (6, 5)),
    ):
        assert "1.self_attn.in_proj_weight" in scores
        assert all(score.count_nonzero() for score in scores.values())


@pytest.mark.slow
def test_synflow_does_not_collapse_where_one_shot_methods_do() -> None:
    """At 99 % magnitudes leave nothing of the widest layers, at 99.7 % SNIP; SynFlow leaves paths (theorem 3)."""
    widths = [16, 16, 16, 16, 128, 128, *[16] * 8, 3]
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels_in, channels in itertools.pairwise(widths):
        layers += [nn.Linear(channels_in, channels, bias=False), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)  # type: ignore[arg-type]
    model = nn.Sequential(*layers[:-1])
    total = sum(parameter.numel() for parameter in model.parameters())
    scores = snip_scores(model, batches((16,), (64,)), F.cross_entropy)

    def dead(masks: dict[str, Tensor]) -> int:
        assert sum(int((~mask).sum()) for mask in masks.values()) == round(share * total)
        return sum(not mask.any() for mask in masks.values())

    for share, others in (
        (0.99, magnitude_masks(model, 0.99)),
        (0.997, masks_from_scores(scores, round(0.997 * total))),
    ):
        flow = synflow_masks(model, share, (16,))
        assert dead(others)
        assert not dead(flow)
        assert synflow_scores(model, (16,), masks=others)["0.weight"].sum() == 0
        assert synflow_scores(model, (16,), masks=flow)["0.weight"].sum() > 0


def test_pruned_weights_stay_pruned_over_the_iterations() -> None:
    """Also where survivors carry no flow: a dead input makes scores of zero beside those of the pruned."""
    model = relu_net()
    with torch.no_grad():
        model.get_parameter("0.weight")[:, 0] = 0
    coarse = synflow_masks(model, 0.5, (3,), iterations=1)
    fine = synflow_masks(model, 0.9, (3,), iterations=50)
    assert sparsity(fine) == pytest.approx(0.9, abs=0.5 / 42)
    assert not coarse["0.weight"][:, 0].any()
    assert not fine["0.weight"][:, 0].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_nothing_of_the_module_changes(method: str, training: bool) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(8, width=4).train(training)
    model.get_submodule("layer1").eval()
    model.get_parameter("layer1.0.conv1.weight").requires_grad_(False)
    kept = model.get_parameter("layer2.0.conv1.weight")
    kept.grad = torch.ones_like(kept)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    data = batches((3, 8, 8))
    random = torch.get_rng_state()
    with torch.no_grad():  # whoever calls may have switched gradients off
        if method == "snip":
            scores = snip_scores(model, data, F.cross_entropy)
        elif method == "grasp":
            scores = grasp_scores(model, data, F.cross_entropy)
        else:
            scores = synflow_scores(model, (3, 8, 8))
    assert list(scores) == list(magnitude_masks(model, 0.5))
    assert scores["layer1.0.conv1.weight"].count_nonzero()  # frozen ones are scored too
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [layer.training for layer in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name != "layer2.0.conv1.weight")
        assert parameter.requires_grad == (name != "layer1.0.conv1.weight")
    assert kept.grad.eq(1).all()


def test_the_mode_comes_back_after_an_error() -> None:
    model = cifar_resnet(8, width=4)
    with pytest.raises(RuntimeError):
        snip_scores(model, [(torch.randn(2, 5, 8, 8), torch.zeros(2).long())], F.cross_entropy)
    assert all(layer.training for layer in model.modules())


def test_batch_norms_use_the_batch_and_dropout_is_off() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)
    ).eval()
    data = batches((4,), (9,))
    found = snip_scores(model, data, F.cross_entropy)
    assert all(torch.equal(score, found[n]) for n, score in snip_scores(model, data, F.cross_entropy).items())
    model[1].train()
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()  # type: ignore[no-untyped-call]
    for name, score in found.items():
        weight = model.get_parameter(name)
        assert weight.grad is not None
        torch.testing.assert_close(
            score, (weight.grad * weight.detach()).abs().double(), rtol=1e-4, atol=1e-8
        )


def test_scores_under_a_compiled_name_are_plain() -> None:
    model = small()
    data = batches((4,))
    wrapped = snip_scores(nn.DataParallel(model), data, F.cross_entropy)
    assert list(wrapped) == ["0.weight", "2.weight"]


def test_a_tied_weight_is_scored_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    scores = snip_scores(model, batches((4,)), F.cross_entropy)
    assert list(scores) == ["0.weight"]


def test_errors_are_one_line() -> None:
    model, data = small(), batches((4,))
    with pytest.raises(MaskError, match="no batches"):
        snip_scores(model, [], F.cross_entropy)
    with pytest.raises(MaskError, match="loss must be one number"):
        snip_scores(model, data, lambda out, y: F.cross_entropy(out, y, reduction="none"))
    with pytest.raises(MaskError, match=r"gradient of '0.weight' is not finite"):
        snip_scores(model, [(torch.full((2, 4), torch.nan), torch.zeros(2).long())], F.cross_entropy)
    with pytest.raises(MaskError, match="temperature"):
        grasp_scores(model, data, F.cross_entropy, temperature=0)
    with pytest.raises(MaskError, match="at least one iteration"):
        synflow_masks(model, 0.5, (4,), iterations=0)
    with pytest.raises(MaskError, match="meta device"):
        synflow_scores(nn.Linear(3, 2, device="meta"), (3,))
    deep = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4)))
    with torch.no_grad():
        for weight in deep.parameters():
            weight.fill_(1e38)
    huge = nn.Sequential(*deep, *deep, *deep)
    with pytest.raises(MaskError, match="exceeds float64"):
        synflow_scores(huge, (2,))
