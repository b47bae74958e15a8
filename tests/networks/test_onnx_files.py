"""ONNX files that others have made: what is found in them, and that every way there and back gives the source again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import elastic_ir as eir
from elastic_ir.errors import StructureError
from tests.networks.onnx_files import PATHS, SHAPES, feeds, run

#: Blocks in each stage, and the depth. Of the two inceptions no block has an equal twin; those of one kind that keep
#: the activation's shape are free there.
FOUND: dict[str, tuple[list[int], int]] = {
    "opennsfw": ([3, 4, 6, 3], 50),
    "minilm": ([3], 12),
    "ocr-det": ([1, 1, 1, 1, 1, 4, 1, 4], 35),
    "ocr-rec": ([1, 2, 2, 5, 2, 2], 43),
    "ocr-cls": ([1, 2, 5, 3], 36),
    "light-resnet50": ([3, 4, 6, 3], 50),
    "light-vgg19": ([2, 2, 4, 4, 4], 19),
    "light-shufflenet": ([4, 8, 4], 50),
    "light-inception_v1": ([1, 1, 1, 1, 1, 3, 1, 1, 1, 1], 22),
    "light-inception_v2": ([1, 1, 1, 1, 1, 5, 3], 34),
    "light-zfnet512": ([3], 8),
}
NOTHING = [
    "light-bvlc_alexnet",
    "light-densenet121",
    "light-squeezenet",
    "silero_vad",
    "silero_vad_16k_op15",
    "silero_vad_16k_sequence",
    "silero_vad_half",
    "silero_vad_op18_ifless",
    "silero_vad_openvino_16k",
]


def load(name: str) -> eir.Graph:
    return eir.load(PATHS[name], input_shape=SHAPES.get(name))


@pytest.mark.parametrize("name", FOUND)
def test_structure(name: str) -> None:
    graph = load(name)
    counts, depth = FOUND[name]
    assert [len(stage) for stage in graph.stages] == counts
    assert graph.depth == depth
    assert all(stage.period == 1 for stage in graph.stages)


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_repeats(name: str) -> None:
    with pytest.raises(StructureError) as caught:
        load(name).stages  # noqa: B018
    assert "repeats: " in str(caught.value)
    bodies = name.startswith("silero") and name not in ("silero_vad_16k_sequence", "silero_vad_openvino_16k")
    assert (
        "what is in the bodies of its If nodes is kept whole and never cut" in str(caught.value)
    ) == bodies


@pytest.mark.parametrize("name", PATHS)
def test_reading_and_writing_changes_nothing(name: str, tmp_path: Path) -> None:
    (path,) = eir.save(load(name), tmp_path / "same.onnx")
    assert onnx.load(path) == onnx.load(PATHS[name])


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.slow
def test_stretch_and_the_inverse_squeeze(name: str, tmp_path: Path) -> None:
    graph = load(name)
    place = max(range(len(graph.stages)), key=lambda index: len(graph.stages[index].blocks))
    stage = graph.stages[place]
    deeper = eir.stretch(graph, to_stages={stage.name: len(stage) + 2})
    given = feeds(graph)
    (path,) = eir.save(deeper, tmp_path / "deeper.onnx")
    assert all(np.isfinite(found).all() for found in run(path, given))
    back = eir.squeeze(deeper, to_stages={stage.name: len(stage)})
    (same,) = eir.save(back, tmp_path / "back.onnx")
    assert onnx.load(same) == onnx.load(PATHS[name])
    read = eir.load(path, input_shape=SHAPES.get(name))  # and from the file that was written
    wanted = max(read.stages, key=lambda found: len(found.blocks))
    assert len(wanted) == len(stage) + 2
    (again,) = eir.save(eir.squeeze(read, to_stages={wanted.name: len(stage)}), tmp_path / "again.onnx")
    for ours, theirs in zip(run(again, given), run(PATHS[name], given), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
def test_a_bert_of_three_layers_to_six_and_to_two(tmp_path: Path) -> None:
    graph = load("minilm")
    given = feeds(graph)
    (six,) = eir.save(eir.stretch(graph, to_units=6), tmp_path / "six.onnx")
    (two,) = eir.save(eir.squeeze(graph, to_units=2), tmp_path / "two.onnx")
    shapes = [output.shape for output in run(PATHS["minilm"], given)]
    for path, count in ((six, 6), (two, 2)):
        assert [output.shape for output in run(path, given)] == shapes
        assert [len(stage) for stage in eir.load(path).stages] == [count]
    model = onnx.load(six)
    names = {tensor.name for tensor in model.graph.initializer}
    assert "model.0.auto_model.encoder.layer.5.attention.self.query.bias" in names
    assert "/model/model.0/auto_model/encoder/layer.5/attention/self/query/MatMul" in {
        n.name for n in model.graph.node
    }
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["batch_size", "sequence_length"]


def test_weights_stay_in_the_file_until_they_are_written() -> None:
    graph = load("minilm")
    deeper = eir.stretch(graph, to_units=12)
    large = [w.storage.data for w in deeper.weights.values() if w.prunable]
    assert {type(data).__name__ for data in large} == {"FileTensor"}
