"""What does not fit is told in one line before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elastic_ir.errors import ElasticError, PlanError, SourceError
from elastic_ir.training import Data, Split, Training, load_data
from elastic_ir.training.checks import check_fit
from elastic_ir.zoo import cifar_resnet20
from tests.training.nets import digits, perceptron

SHORT = Training(steps=4)


def data(images: Tensor, labels: Tensor) -> Data:
    return Data("mine", Split(images, labels), Split(images, labels), classes=10)


def test_grey_images_for_a_network_of_colours() -> None:
    with pytest.raises(PlanError) as told:
        check_fit(cifar_resnet20(), digits(), SHORT, None)
    said = str(told.value)
    assert (
        "images of digits, 2x1x8x8 as a batch of two: conv1 has a weight of 16x3x3x3 and got 2x1x8x8" in said
    )
    assert "give --channels 3 " in said and "\n" not in said
    check_fit(cifar_resnet20(), load_data("digits", channels=3), SHORT, None)


GREY, CLASSES = torch.zeros(6, 1, 8, 8), torch.arange(6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((GREY[:, 0], CLASSES), PlanError, r"an image of mine is 8x8, without an axis .* make each 1x8x8"),
        ((GREY, CLASSES + 5), PlanError, r"labels of mine go from 5 to 10, and Perceptron has 10 outputs"),
        ((GREY, CLASSES - 1), PlanError, r"labels of mine go from -1 to 4"),
        ((GREY, CLASSES[:5]), SourceError, r"images of mine are 6x1x8x8 and its labels 5; every image"),
        ((GREY[:0], CLASSES[:0]), SourceError, r"mine has no training images"),
        ((GREY, CLASSES[:, None].expand(6, 2)), PlanError, r"outputs of .* are 2x10, its labels 2x2 \("),
        ((GREY[..., :4], CLASSES), PlanError, r"stem has a weight of 16x64 and got 2x32; .* wants 64 values"),
    ],
)
def test_images_and_labels_that_do_not_fit(
    given: tuple[Tensor, Tensor], error: type[ElasticError], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_fit(perceptron(), data(*given), SHORT, None)


def test_what_fits_is_left_as_it_was() -> None:
    """Neither the network nor the caller's dice move; rows of numbers are data as well, where nothing is an image."""
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 6))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    rows = data(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), CLASSES)
    check_fit(network, rows, Training(steps=4, channels_last=False), None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and network.training
    ignored = torch.tensor([0, 1, 2, -100, 4, 5])  # what torch's cross-entropy passes over
    check_fit(perceptron(), data(GREY, ignored), SHORT, None)
    check_fit(
        perceptron(), data(GREY, CLASSES + 5), SHORT, nn.MSELoss()
    )  # what labels mean is the loss's affair


def test_outputs_that_are_no_scores() -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"scores": x}

    with pytest.raises(
        PlanError, match="Told returns dict for a batch of digits; expected a tensor, batch x cl"
    ):
        check_fit(Told(), digits(), SHORT, None)


def test_data_of_a_function_that_fails_are_told_as_that() -> None:
    with pytest.raises(
        SourceError, match="nets:failing fails without arguments: AttributeError: 'int' object has no"
    ):
        load_data("tests.training.nets:failing")
    with pytest.raises(SourceError, match=r"images of .*nets:uneven are 6x1x8x8 and its labels 5"):
        load_data("tests.training.nets:uneven")
