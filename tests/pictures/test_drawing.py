"""Drawings of networks: which blocks stand where and come from where, and that no name gets out of its place."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import elastic_ir as eir
from elastic_ir.cli.demo import make_ticket
from elastic_ir.pictures.picture import Box, Picture, StagePicture, hex_colour, picture_of
from elastic_ir.pictures.svg import GREY, draw
from elastic_ir.pictures.text_graphs import dot, mermaid
from elastic_ir.zoo import cifar_resnet
from tests.cli.test_cli import good, run

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "resnet32-to-56.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's ticket, and the same stretched, squeezed back to fewer blocks, and stretched twice."""
    folder = tmp_path_factory.mktemp("files")
    make_ticket(folder / "model.pt")
    graph = eir.load(folder / "model.pt")
    eir.save(eir.stretch(graph, to_depth=56), folder / "model-depth56.pt", check=False)
    eir.save(eir.squeeze(graph, to_stages=(2, 5, 3), drop="even"), folder / "less.pt", check=False)
    return folder


def sources(picture: Picture) -> list[list[str]]:
    return [[box.source for box in stage.boxes] for stage in picture.stages]


def test_the_image_in_the_readme_is_what_the_command_draws(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    out = tmp_path / "made.svg"
    text = good("inspect", "model-depth56.pt", "--graph", str(out))
    assert f"wrote:      {out} (" in text
    assert out.read_text() == IMAGE.read_text(), f"make it anew: --graph {IMAGE}"


def test_a_file_tells_which_blocks_are_copies(files: Path) -> None:
    picture = picture_of(eir.load(files / "model-depth56.pt"))
    assert sources(picture) == [list("012341234")] * 3
    assert [box.copy for box in picture.stages[0].boxes] == [False] * 5 + [True] * 4
    assert (picture.source, picture.depth, picture.changed) == ("model.pt", 56, True)


def test_what_was_deleted_is_shown_as_gone(files: Path) -> None:
    picture = picture_of(eir.load(files / "less.pt"))
    assert [stage.before for stage in picture.stages] == [tuple("01234")] * 3
    assert sources(picture) == [["0", "1"], list("01234"), ["0", "1", "3"]]
    drawn = ElementTree.fromstring(draw(picture))
    dashed = [each for each in drawn.iter(f"{SVG}rect") if each.get("stroke-dasharray")]
    assert len(dashed) == 5


def test_a_graph_and_its_file_are_drawn_alike(files: Path) -> None:
    changed = eir.stretch(eir.load(files / "model.pt"), to_depth=56)
    assert sources(picture_of(changed)) == sources(picture_of(eir.load(files / "model-depth56.pt")))


def test_nothing_is_claimed_where_nothing_is_stated(files: Path, tmp_path: Path) -> None:
    save_file(cifar_resnet(20, width=4).state_dict(), tmp_path / "bare.safetensors")
    for source in (files / "model.pt", tmp_path / "bare.safetensors"):
        picture = picture_of(eir.load(source))
        assert not picture.changed and picture.source == ""
        assert {box.source for stage in picture.stages for box in stage.boxes} == {""}
        assert "source block" not in draw(picture)


def test_blocks_of_two_networks() -> None:
    first, second = (eir.trace(cifar_resnet(20, width=4)) for _ in range(2))
    merged = eir.stretch(first, plan="0-2,b/1-2|0-2|0-2", others={"b": second})
    picture = picture_of(merged)
    assert sources(picture)[0] == ["0", "1", "2", "b/1", "b/2"]
    assert picture.stages[0].before == ("0", "1", "2", "b/1", "b/2")


def test_every_block_is_joined_to_its_source(files: Path) -> None:
    drawn = ElementTree.fromstring(draw(picture_of(eir.load(files / "model-depth56.pt"))))
    assert len(list(drawn.iter(f"{SVG}path"))) == 27
    titles = [each.text or "" for each in drawn.iter(f"{SVG}title")]
    assert "layer2.5: free, of source block 1" in titles


def test_text_reads_on_white_and_on_black() -> None:
    """Of the grey, and of white numbers on each colour; the measure is WCAG's, 3 for bold and large text."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(GREY, "#ffffff"), contrast(GREY, "#0d1117")) > 3.9
    assert min(contrast(hex_colour(hue), "#ffffff") for hue in range(360)) > 3


def test_dot_chains_the_blocks_and_marks_copies(files: Path) -> None:
    text = dot(picture_of(eir.load(files / "model-depth56.pt")))
    solid = re.findall(r"^  (\w+) -> (\w+);$", text, re.MULTILINE)
    assert len(solid) == 28 and solid[0][0] == "stem" and solid[-1][1] == "head"
    assert all(one[1] == other[0] for one, other in pairwise(solid))
    assert "b0_1 -> b0_5 [style=dashed" in text and text.count("style=dashed") == 12


def test_mermaid_draws_runs_of_a_long_stage_as_one() -> None:
    boxes = tuple(
        Box(at, f"h.{at}", "free", str(at if at < 150 else at - 50), at >= 150) for at in range(300)
    )
    stage = StagePicture("h", "64", 600, 0.0, boxes, tuple(map(str, range(250))))
    text = mermaid(Picture("long", 600, "", "head", (stage,), 0.0, "short"))
    assert '["0-149"]' in text and '["100-249"]' in text
    assert text.count("-->") == 2 and len(text.splitlines()) < 20


HOSTILE = '"]<script>alert(1)</script>\n\x1b[31m'


def test_names_stay_in_their_place() -> None:
    stage = StagePicture(HOSTILE, "", None, 0.5, (Box(0, HOSTILE, "free", "", False),), ())
    picture = Picture(HOSTILE, None, "stem", "head", (stage,), 0.0, HOSTILE)
    drawn = draw(picture)
    assert "<script" not in drawn and "\x1b" not in drawn
    assert not [each for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("script")]
    chart = mermaid(picture)
    assert "<script" not in chart and '"]<' not in chart and "\x1b" not in chart
    for line in dot(picture).splitlines():
        assert "\x1b" not in line and re.sub(r'"(\\.|[^"\\])*"', "", line).count('"') == 0


@pytest.mark.parametrize("name", ["out.png", "out"])
def test_a_name_of_no_drawing_is_told_before_anything_is_read(name: str) -> None:
    result = run("inspect", "missing.pt", "--graph", name)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {name} names no kind of drawing; use one of .svg, .dot, .gv, .mermaid, .mmd\n"
    )


def test_a_network_without_repeats_is_not_drawn(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), tmp_path / "plain.pt")
    result = run("inspect", str(tmp_path / "plain.pt"), "--graph", str(tmp_path / "out.svg"))
    assert result.exit_code == 1 and result.stderr.startswith("error: nothing in")
    assert not (tmp_path / "out.svg").exists()
