"""Tensors beside the layers of a folder that have an entry for each layer follow the plan, and are verified."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.oracle import comparison, verification
from elastic_ir.checkpoints.oracle.process import answer
from elastic_ir.checkpoints.read import load_checkpoint
from elastic_ir.checkpoints.record import read_record
from elastic_ir.checkpoints.verify import verify_checkpoint
from elastic_ir.checkpoints.write import save_checkpoint
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import PlanError
from elastic_ir.formats.packed_masks import read_mask_tensors
from elastic_ir.tensors.gathered import Gathering
from elastic_ir.tensors.lazy import Mask
from tests.checkpoints.folders import config, llama, write
from tests.checkpoints.oracle.test_comparison import gemma3n, wav2vec2

Entries = Mapping[str, tuple[str, Gathering]]


def yolos() -> Any:
    """A network with positions that are added between two layers."""
    settings = t.YolosConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, image_size=[32, 32],
        patch_size=8, num_detection_tokens=5,
    )  # fmt: skip
    return t.YolosForObjectDetection(settings)


def whisper() -> Any:
    settings = t.WhisperConfig(
        d_model=32, encoder_layers=4, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=60, num_mel_bins=8, max_source_positions=20,
        max_target_positions=20, use_weighted_layer_sum=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return t.WhisperForAudioClassification(settings)


def of_wave(name: str) -> Callable[[], Any]:
    """One of the networks that sum what all layers give, by softmaxed weights."""

    def make() -> Any:
        settings = {**wav2vec2().config.to_dict(), "architectures": None, "model_type": None}
        kind = getattr(t, f"{name}Config")
        known = kind().to_dict()
        return getattr(t, f"{name}ForSequenceClassification")(
            kind(**{key: value for key, value in settings.items() if key in known and value is not None})
        )

    return make


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """But in slow tests, networks are built in this process, which has transformers already."""

    @contextlib.contextmanager
    def asking(question: Mapping[str, Any]) -> Iterator[Callable[[], Mapping[str, Any]]]:
        yield lambda: answer(json.loads(json.dumps(question)))

    if "slow" not in request.keywords:
        monkeypatch.setattr(comparison, "asking", asking)
        monkeypatch.setattr(verification, "asking", asking)


def saved(make: Callable[[], Any], folder: Path) -> eir.Graph:
    """A network with other values in every place, in a folder that is read by its headers."""
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return load_checkpoint(folder)


def informer() -> Any:
    """A network with a convolution between two layers of its encoder, in a list of their own."""
    settings = t.InformerConfig(
        prediction_length=4, context_length=8, encoder_layers=4, decoder_layers=3, d_model=16,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, distil=True,
        lags_sequence=[1, 2],
    )  # fmt: skip
    return t.InformerModel(settings)


def esm() -> Any:
    """A network whose head reads the attention of all heads of all layers side by side."""
    settings = t.EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48,
        pad_token_id=1, mask_token_id=32, position_embedding_type="rotary",
    )  # fmt: skip
    return t.EsmForMaskedLM(settings)


def lightglue() -> Any:
    """A network that steps through two lists, and through a third in all steps but the last."""
    settings = t.LightGlueConfig(num_hidden_layers=4, descriptor_dim=32, num_attention_heads=2)
    return t.LightGlueForKeypointMatching(settings)


ORDER = [0, 1, 2, 3, 2, 3]
CASES: dict[str, tuple[Callable[[], Any], str, list[int], dict[str, Gathering]]] = {
    "wav2vec2": (
        wav2vec2, "wav2vec2.encoder.layers", ORDER,
        {"layer_weights": Gathering(0, (0, 1, 2, 3, 4, 3, 4), shared=True)},
    ),
    "wavlm": (
        of_wave("WavLM"), "wavlm.encoder.layers", [0, 1, 3],
        {"layer_weights": Gathering(0, (0, 1, 2, 4), shared=True)},
    ),
    "whisper": (
        whisper, "encoder.layers", ORDER, {"layer_weights": Gathering(0, (0, 1, 2, 3, 4, 3, 4), shared=True)},
    ),
    "yolos": (
        yolos, "vit.encoder.layer", ORDER,
        {"vit.encoder.mid_position_embeddings": Gathering(0, (0, 1, 2, 2, 2))},
    ),
    "gemma3n": (
        gemma3n, "model.layers", [0, 1, 0, 1, 2, 3, 4, 5],
        {
            "model.embed_tokens_per_layer.weight": Gathering(1, (0, 1, 0, 1, 2, 3, 4, 5), 8),
            "model.per_layer_model_projection.weight": Gathering(0, (0, 1, 0, 1, 2, 3, 4, 5), 8),
        },
    ),
    "esm": (
        esm, "esm.encoder.layer", ORDER,
        {"esm.contact_head.regression.weight": Gathering(1, (0, 1, 2, 3, 2, 3), 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_entries_follow_their_layers(name: str, tmp_path: Path) -> None:
    """In the graph, in what is written, in its record; the network takes it, and verify agrees."""
    make, stage, order, wanted = CASES[name]
    graph = saved(make, tmp_path / "source")
    deeper = eir.stretch(graph, plan={stage: order})
    out = save_checkpoint(deeper, tmp_path / "out")
    old, new = (load_file(folder / "model.safetensors") for folder in (tmp_path / "source", out))
    (step,) = read_record(out)
    assert {name: one.gathering for name, one in step.lineage.items() if one.gathering is not None} == wanted
    for tensor, how in wanted.items():
        taken = np.take(old[tensor], how.places(), how.axis)
        assert deeper.weights[tensor].shape == new[tensor].shape == taken.shape
        if how.shared:
            often = np.asarray([how.entries.count(entry) for entry in how.entries])
            assert np.allclose(np.exp(new[tensor]), np.exp(taken) / often, rtol=1e-6)
        else:
            assert (new[tensor] == taken).all()
    found = verify_checkpoint(out, [tmp_path / "source"])
    assert found.differences == [] and type(make()).__name__ in found.network
    _, report = type(make()).from_pretrained(out, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize(
    ("make", "stage", "between"),
    [
        (informer, "encoder.layers", "encoder.conv_layers"),
        (lightglue, "match_assignment_layers", "token_confidence"),
    ],
)
@pytest.mark.parametrize(("order", "wanted"), [(ORDER, [0, 1, 2, 2, 2]), ([0, 2, 3], [0, 2]), ([0, 1], [0])])
@pytest.mark.slow
def test_lists_between_layers_follow(
    make: Callable[[], Any], stage: str, between: str, order: list[int], wanted: list[int], tmp_path: Path
) -> None:
    """A list of one member fewer has those that stand behind the layers' sources."""
    graph = saved(make, tmp_path / "source")
    deeper = eir.stretch(graph, plan={stage: order})
    place = [one.name for one in graph.stages].index(between)
    assert list(deeper.resequenced.plan[place]) == wanted
    sources = {
        int(new.removeprefix(f"{between}.").split(".")[0]): int(old.removeprefix(f"{between}.").split(".")[0])
        for new, old in deeper.lineage().items()
        if new.startswith(f"{between}.")
    }
    assert sources == dict(enumerate(wanted))
    out = save_checkpoint(deeper, tmp_path / "out")
    assert verify_checkpoint(out, [tmp_path / "source"]).differences == []
    _, report = type(make()).from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    kept = eir.stretch(graph, plan={stage: order}, keep_beside=between)
    assert len(kept.structure.stage(between)) == 3
    other = {stage: order, between: [0] * (len(order) - 1)}  # what the plan states is not changed
    assert list(eir.stretch(graph, plan=other).resequenced.plan[place]) == other[between]


def test_a_list_that_a_squeeze_leaves_alone(tmp_path: Path) -> None:
    """Encoder and decoder of Informer, of which one has a layer fewer, have nothing to do with each other."""
    graph = saved(informer, tmp_path / "source")
    after = eir.squeeze(graph, to_stages={"decoder.layers": 2})
    assert [len(stage) for stage in after.stages] == [2, 3, 4]


def test_a_weighted_sum_is_unchanged(tmp_path: Path) -> None:
    """A copy that computes nothing has the state of its source, and the sum over all states is the same."""
    graph = saved(wav2vec2, tmp_path / "source")
    closing = ("attention.out_proj", "feed_forward.output_dense")
    settings = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps({**settings, "do_stable_layer_norm": True}))
    graph = load_checkpoint(tmp_path / "source")
    save_checkpoint(eir.stretch(graph, to_units=8, order="interpolate", zero=closing), tmp_path / "out")
    kind: Any = t.Wav2Vec2ForSequenceClassification
    one, other = (kind.from_pretrained(tmp_path / name).eval() for name in ("source", "out"))
    sound = torch.randn(1, 400)
    states = one(sound, output_hidden_states=True).hidden_states
    assert len(other(sound, output_hidden_states=True).hidden_states) == len(states) + 4
    weights = one.layer_weights.softmax(0), other.layer_weights.softmax(0)
    assert torch.allclose(weights[0][1:], weights[1][1:].reshape(4, 2).sum(1), atol=1e-6)
    # the last state of all is normed once more, in both
    assert torch.allclose(one(sound).logits, other(sound).logits, atol=0.05)


def test_there_and_back_in_one_session(tmp_path: Path) -> None:
    graph = saved(wav2vec2, tmp_path / "source")
    deeper = eir.stretch(eir.stretch(graph, to_units=6), to_units=8, order="interpolate")
    back = eir.squeeze(eir.squeeze(deeper, to_units=6, drop="even"), to_units=4)
    assert back.weights["layer_weights"].storage.data == graph.weights["layer_weights"].storage.data
    moved = eir.stretch(graph, plan=[[1, 0, 2, 3]])
    assert moved.weights["layer_weights"].storage.data.gathering == Gathering(0, (0, 2, 1, 3, 4), shared=True)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_masks_follow(tmp_path: Path) -> None:
    graph = saved(gemma3n, tmp_path / "source")
    name = "model.per_layer_model_projection.weight"
    bits = np.random.default_rng(0).random(graph.weights[name].shape) < 0.5
    graph.weights[name].storage.mask = Mask.from_array(bits)
    save_checkpoint(graph, tmp_path / "masked")
    graph = eir.load(tmp_path / "masked", headers_only=True)
    deeper = eir.stretch(graph, plan={"model.layers": [0, 1, 0, 1, 2, 3, 4, 5]})
    out = save_checkpoint(deeper, tmp_path / "out")
    (held,) = [
        mask for one, mask in read_mask_tensors(out / "model.masks.safetensors").items() if one == name
    ]
    rows = [entry * 8 + at for entry in (0, 1, 0, 1, 2, 3, 4, 5) for at in range(8)]
    assert (held.array() == bits[rows]).all()
    assert verify_checkpoint(out, [tmp_path / "masked"]).differences == []


# -- what verify sees --------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    graph = saved(wav2vec2, tmp_path / "source")
    return save_checkpoint(eir.stretch(graph, plan=[ORDER]), tmp_path / "out")


def test_another_value_is_a_difference(written: Path) -> None:
    state = load_file(written / "model.safetensors")
    state["layer_weights"] = state["layer_weights"] + np.float32(0.5)
    save_file(state, written / "model.safetensors", {"format": "pt"})
    (found,) = verify_checkpoint(written, [written.parent / "source"]).differences
    assert found.tensor == "layer_weights" and found.what.startswith("differs, first at byte")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([0, 1, 2, 3, 4, 1, 2], "has entries of other layers than the plan states"),
        ([0, 1, 2, 3, 4, 3, 9], "has entries that its origin [5] does not"),
    ],
)
def test_entries_of_other_layers_are_a_difference(entries: list[int], told: str, written: Path) -> None:
    record = json.loads((written / "elastic_ir.json").read_text())
    assert record["version"] == 2
    record["history"][0]["lineage"]["layer_weights"]["gathered"]["entries"] = entries
    (written / "elastic_ir.json").write_text(json.dumps(record))
    for sources in ([written.parent / "source"], []):
        found = verify_checkpoint(written, sources).differences
        assert any(one.tensor == "layer_weights" and one.what == told for one in found)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_not_plain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of which it does not show whether its weights are softmaxed as they are."""
    graph = saved(wav2vec2, tmp_path / "source")
    monkeypatch.setattr(
        "elastic_ir.checkpoints.oracle.by_layer.inspect.getsource",
        lambda kind: (
            "class Net:\n"
            "    def forward(self, hidden_states):\n"
            "        return hidden_states * torch.softmax(self.layer_weights / 2, 0)\n"
        ),
    )
    with pytest.raises(PlanError) as caught:
        eir.stretch(graph, plan=[ORDER])
    assert str(caught.value) == (
        "layer_weights [5] beside 'wav2vec2.encoder.layers' has an entry for each of its layers, and cannot follow "
        "them: it does not show whether they are softmaxed as they are; --keep-beside layer_weights (keep_beside=) "
        "with --no-check writes it as it is"
    )
    kept = eir.stretch(graph, plan=[ORDER], keep_beside="layer_weights")
    assert kept.weights["layer_weights"].shape == (5,)
    assert (save_checkpoint(kept, tmp_path / "out", check=False) / "config.json").exists()


@pytest.mark.slow
def test_layers_of_several_networks(tmp_path: Path) -> None:
    graph, other = (saved(wav2vec2, tmp_path / name) for name in ("one", "two"))
    with pytest.raises(PlanError, match=r"layer_weights .* the plan takes layers of several networks"):
        eir.stretch(graph, plan="0-3,b/3", others={"b": other})


def test_nothing_is_asked_where_nothing_seems_to_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load_checkpoint(write(tmp_path / "source", llama(), config(4)))

    def asking(_: Any) -> Any:
        raise AssertionError("a network is built")

    monkeypatch.setattr(comparison, "asking", asking)
    assert len(eir.stretch(graph, to_units=6).stages[0]) == 6


@pytest.mark.slow
def test_the_summary_says_what_followed(tmp_path: Path) -> None:
    saved(wav2vec2, tmp_path / "source")
    command = ["squeeze", str(tmp_path / "source"), "--drop", "2", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(elastic_ir, command)
    assert done.exit_code == 0, done.output
    assert (
        "followed:   layer_weights [5] -> [4], an entry for each layer, softmaxed: copies share their source's "
        "weight; the weights of 1 that are gone are the others' now\n"
    ) in done.output
    assert "for `layer_weights`, whose entries follow them." in (tmp_path / "out" / "README.md").read_text()
