"""Folders of timm, diffusers and OpenCLIP: recognised, changed in depth, compared with their classes, and loaded.

The networks of diffusers and OpenCLIP are tested where those libraries are installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

import elastic_ir as eir
from elastic_ir.checkpoints.libraries.find import library_of
from elastic_ir.checkpoints.oracle.comparison import Compared, asked, judged
from elastic_ir.checkpoints.oracle.process import answer
from elastic_ir.checkpoints.write import plan_checkpoint, save_checkpoint
from elastic_ir.errors import EmitError, PlanError, SourceError
from tests.checkpoints.folders import run


def changed(graph: eir.Graph, out: Path, monkeypatch: pytest.MonkeyPatch, check: bool = True) -> Compared:
    """Write a folder, and return what the comparison said; the process's answer is given in this one."""
    told: list[Compared] = []
    with monkeypatch.context() as patch:
        patch.setattr("elastic_ir.checkpoints.oracle.comparison.started", Here)
        save_checkpoint(graph, out, check=check, tell_compared=told.append)
    return told[0]


class Here:
    """What stands for the process, in this one: libraries are imported once for all tests."""

    def __init__(self, module: str, data: Any) -> None:
        self._data = json.loads(json.dumps(data))

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def answer(self) -> Any:
        return json.loads(json.dumps(answer(self._data)))


def config_of(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / name).read_text())


# -- timm --------------------------------------------------------------------------------------------------------------


def timm_folder(folder: Path, name: str, stated: bool = True, **arguments: Any) -> torch.nn.Module:
    """A folder as timm saves it; without ``stated`` as most published ones are, with no arguments."""
    torch.manual_seed(0)
    network: torch.nn.Module = timm.create_model(name, **arguments)
    save_for_hf(network, str(folder), model_args=arguments if stated else None)
    if not stated:
        config = config_of(folder)
        config.pop("model_args", None)
        (folder / "config.json").write_text(json.dumps(config))
    return network


def loaded_by_timm(folder: Path) -> torch.nn.Module:
    network: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network


TIMM: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 32},
            {"to_units": 5}, {"depth": 5}),
    "convnext": ("convnext_atto", {"depths": [2, 2, 3, 2], "dims": [8, 16, 24, 32]},
                 {"to_stages": (3, 2, 5, 2)}, {"depths": [3, 2, 5, 2]}),
    "resnetv2": ("resnetv2_50", {"layers": [2, 2, 3, 2], "channels": [16, 32, 48, 64]},
                 {"to_stages": (2, 3, 3, 2)}, {"layers": [2, 3, 3, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("which", TIMM)
def test_arguments_of_timm_are_brought_to_the_depth(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, arguments, how, wanted = TIMM[which]
    source = timm_folder(tmp_path / "source", name, **arguments)
    found = changed(
        eir.stretch(eir.load(tmp_path / "source", headers_only=True), **how), tmp_path / "out", monkeypatch
    )
    assert found == Compared(type(source).__name__)
    assert {key: config_of(tmp_path / "out")["model_args"][key] for key in wanted} == wanted
    loaded_by_timm(tmp_path / "out")  # which is strict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage", "count", "wanted"),
    [
        ("test_vit", "blocks", 8, {"depth": 8}),
        ("test_convnext", "stages.2.blocks", 6, {"depths": [1, 2, 6, 2]}),
    ],
)
def test_a_depth_that_timm_has_not_stated(
    name: str, stage: str, count: int, wanted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function knows the depths: they are read off what the class is given, and stated."""
    timm_folder(tmp_path / "source", name, stated=False)
    graph = eir.load(tmp_path / "source", headers_only=True)
    found = changed(eir.stretch(graph, to_stages={stage: count}), tmp_path / "out", monkeypatch)
    assert len(found.entries) == 1
    assert config_of(tmp_path / "out")["model_args"] == wanted
    loaded_by_timm(tmp_path / "out")


@pytest.mark.slow
def test_what_timm_has_no_argument_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNet's blocks are written down in a function, which takes no other numbers of them."""
    timm_folder(tmp_path / "source", "mobilenetv2_035", stated=False)
    graph = eir.load(tmp_path / "source", headers_only=True)
    name = max(graph.stages, key=len).name
    deeper = eir.stretch(graph, to_stages={name: len(max(graph.stages, key=len)) + 1})
    with pytest.raises(
        PlanError, match=r"no entry that counts .* cannot state the new depth \(EfficientNet was"
    ):
        changed(deeper, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists()


def test_timm_loads_one_file(tmp_path: Path) -> None:
    timm_folder(tmp_path / "source", "test_vit")
    plan = plan_checkpoint(eir.load(tmp_path / "source", headers_only=True), shard_size=1000)
    assert list(plan.shards) == ["model.safetensors"]


@pytest.mark.slow
def test_a_folder_of_timm_is_traced(tmp_path: Path) -> None:
    source = timm_folder(tmp_path / "source", "test_vit")
    graph = eir.load(tmp_path / "source")
    assert len(graph.stages[0]) == 6 and graph.depth
    state = graph.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    reference = eir.stretch(graph, to_units=7)
    assert len(eir.stretch(graph, like=reference).stages[0]) == 7


def test_a_folder_whose_tensors_are_of_another_network(tmp_path: Path) -> None:
    timm_folder(tmp_path / "source", "test_vit")
    config = config_of(tmp_path / "source")
    config["architecture"] = "vit_tiny_patch16_224"
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        SourceError, match="describes a network with tensors other than the folder's, which lacks"
    ):
        eir.load(tmp_path / "source")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "hf-hub:someone/something"}, "names no architecture that timm has"),
        ({"model_args": {"act_layer": "../code.py"}}, "holds a path"),
        ({"model_args": {"no_such": 3}}, "cannot be made"),
    ],
)
def test_what_is_not_given_to_timm(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm_folder(tmp_path / "source", "test_vit")
    graph = eir.load(tmp_path / "source", headers_only=True)
    config = {**config_of(tmp_path / "source"), **changes}
    with pytest.raises(SourceError, match=said):
        library_of(config).network(config, "config.json")
    shapes = {name: weight.storage.data.shape for name, weight in graph.weights.items()}
    assert judged(answer(asked((config, shapes), (config, shapes), []))).kind is None


def test_weights_from_elsewhere_are_not_asked_for(tmp_path: Path) -> None:
    """What says where weights are is left out, whatever its name is worth."""
    timm_folder(tmp_path / "source", "test_vit")
    config = config_of(tmp_path / "source")
    config["pretrained_cfg"] |= {
        "url": "https://example.org/weights.pth",
        "hf_hub_id": "someone/",
        "file": "/etc/passwd",
    }
    config["model_args"] = {
        **config.get("model_args", {}),  # timm 1.0.26 writes none
        "pretrained": False,
        "pretrained_cfg": {"file": "/etc/passwd"},
    }
    network = library_of(config).network(config, "config.json")
    assert len(network.blocks) == 6 and not network.pretrained_cfg.get("file")


# -- which library -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architecture": "resnet18", "pretrained_cfg": {}}, "timm"),
        ({"architecture": "resnet18", "model_type": "timm_wrapper", "pretrained_cfg": {}}, "transformers"),
        ({"_class_name": "FluxTransformer2DModel", "num_layers": 2}, "diffusers"),
        ({"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}, "open_clip"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "transformers"),
        ({"hidden_size": 8}, "transformers"),
    ],
)
def test_a_library_is_recognised_by_its_configuration(config: dict[str, Any], name: str) -> None:
    assert library_of(config).name == name


@pytest.mark.parametrize(
    ("config", "weights", "extra"),
    [
        ({"_class_name": "DiTTransformer2DModel", "num_layers": 3}, "diffusion_pytorch_model", "diffusers"),
        ({"model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": 3}, "text_cfg": {"layers": 2}}}, "open_clip_model",
         "open-clip"),
    ],
)  # fmt: skip
def test_a_library_that_is_not_there(
    config: dict[str, Any], weights: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By names alone the depth is written under the library's own file names, and what to install is stated."""
    from safetensors.torch import save_file

    library = library_of(config)
    monkeypatch.setattr(type(library), "imports", "no_such_library")
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {f"visual.blocks.{i}.{name}.weight": torch.randn(4, 4) for i in range(3) for name in ("a", "b")}
    save_file(tensors, folder / f"{weights}.safetensors")
    (folder / library.file).write_text(json.dumps(config))
    out = tmp_path / "out"
    found = changed(eir.stretch(eir.load(folder, headers_only=True), to_units=5), out, monkeypatch)
    why = (
        "building it needs no_such_library, which cannot be imported (No module named 'no_such_library'); "
        f"pip install 'elastic-ir[{extra}]'"
    )
    assert str(found) == f"not compared with the network: {why}"
    assert {path.name for path in out.iterdir()} >= {f"{weights}.safetensors", library.file}
    made = config_of(out, library.file)
    assert (made.get("num_layers") or made["model_cfg"]["vision_cfg"]["layers"]) == 5
    shards = plan_checkpoint(eir.load(folder, headers_only=True), shard_size=200)
    assert (len(shards.shards) > 1) is (extra == "diffusers")
    assert all(name.startswith(weights) for name in shards.shards)


def test_without_the_library_the_refusal_states_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_folder(tmp_path / "source", "test_vit", stated=False)
    monkeypatch.setattr(type(library_of(config_of(tmp_path / "source"))), "imports", "no_such_library")
    graph = eir.load(tmp_path / "source", headers_only=True)
    with pytest.raises(
        PlanError,
        match=r"as far as names show; its network would show more, but .*building it needs no_such_library",
    ):
        changed(eir.stretch(graph, to_units=8), tmp_path / "out", monkeypatch)


def test_a_pipeline_is_no_network(tmp_path: Path) -> None:
    for name in ("transformer", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text("{}")
    for command in ("inspect", "stretch"):
        failed = run(command, tmp_path, *(["--to-units", "3"] if command == "stretch" else []))
        assert failed.exit_code == 1
        assert "is a pipeline of several networks; give the folder of one: " in failed.output
        assert str(tmp_path / "transformer") in failed.output.replace("\n", "")


# -- diffusers ---------------------------------------------------------------------------------------------------------


def diffusers_network(name: str, **settings: Any) -> Any:
    """A small network of diffusers; the test is skipped where the library is not there."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return getattr(diffusers, name)(**settings)


SD3: dict[str, Any] = {
    "sample_size": 32, "patch_size": 2, "in_channels": 4, "num_layers": 4, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 64,
    "out_channels": 4, "pos_embed_max_size": 24,
}  # fmt: skip
FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "num_layers": 3, "num_single_layers": 4, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
COG: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 2,
    "text_embed_dim": 8, "num_layers": 3, "sample_width": 8, "sample_height": 8, "sample_frames": 8, "patch_size": 2,
    "temporal_compression_ratio": 4, "max_text_seq_length": 8,
}  # fmt: skip
UNET: dict[str, Any] = {
    "block_out_channels": (8, 16), "layers_per_block": 2, "sample_size": 32, "in_channels": 4, "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "layers_per_block": 2,
}  # fmt: skip
#: class, settings, how the folder is saved, what is changed, entries of the result
DIFFUSERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sd3": ("SD3Transformer2DModel", SD3, {"max_shard_size": "100kB"}, {"to_units": 5}, {"num_layers": 6}),
    "sd3 of two kinds": (
        "SD3Transformer2DModel", {**SD3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}, {},
        {"to_stages": {"transformer_blocks:1": 3}}, {"num_layers": 5, "dual_attention_layers": [0, 1, 2]},
    ),
    "flux": ("FluxTransformer2DModel", FLUX, {}, {"to_stages": {"single_transformer_blocks": 6}},
             {"num_layers": 3, "num_single_layers": 6}),
    "cogvideox": ("CogVideoXTransformer3DModel", COG, {"safe_serialization": False}, {"to_units": 5},
                  {"num_layers": 5}),
    "vae": ("AutoencoderKL", VAE, {}, {"to_stages": {
        "encoder.down_blocks.0.resnets": 3, "encoder.down_blocks.1.resnets": 3, "decoder.up_blocks.0.resnets": 4,
        "decoder.up_blocks.1.resnets": 4}}, {"layers_per_block": 3}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("which", DIFFUSERS)
def test_models_of_diffusers(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings, saving, how, wanted = DIFFUSERS[which]
    network = diffusers_network(name, **settings)
    network.save_pretrained(tmp_path / "source", **saving)
    graph = eir.load(tmp_path / "source", headers_only=True)
    assert changed(eir.stretch(graph, **how), tmp_path / "out", monkeypatch).kind == name
    assert {key: config_of(tmp_path / "out")[key] for key in wanted} == wanted
    _, report = type(network).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())


@pytest.mark.slow
def test_one_entry_counts_all_stages_of_a_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers_network("UNet2DConditionModel", **UNET).save_pretrained(tmp_path / "source")
    graph = eir.load(tmp_path / "source", headers_only=True)
    deeper = eir.stretch(graph, to_stages={"down_blocks.0.resnets": 3})
    with pytest.raises(
        PlanError, match=r"config.json's layers_per_block counts down_blocks.0.resnets together with "
    ):
        changed(deeper, tmp_path / "out", monkeypatch)


def test_a_default_that_a_folder_of_diffusers_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of an older or shortened configuration is the class's default."""
    diffusers_network("CogVideoXTransformer3DModel", **{**COG, "num_layers": 30}).save_pretrained(
        tmp_path / "source"
    )
    config = config_of(tmp_path / "source")
    del config["num_layers"]
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    graph = eir.load(tmp_path / "source", headers_only=True)
    found = changed(eir.stretch(graph, to_units=31), tmp_path / "out", monkeypatch)
    assert found.entries == ("num_layers = 31",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "DDIMScheduler"}, "names no model class that diffusers has"),
        ({"_class_name": "os.system"}, "names no model class that diffusers has"),
        ({"qk_norm": "/etc/passwd"}, "holds a path"),
    ],
)
def test_what_is_not_given_to_diffusers(changes: dict[str, Any], said: str) -> None:
    diffusers_network("SD3Transformer2DModel", **SD3)
    config = {"_class_name": "SD3Transformer2DModel", **SD3, **changes}
    with pytest.raises(SourceError, match=said):
        library_of(config).network(config, "config.json")


# -- OpenCLIP ----------------------------------------------------------------------------------------------------------

TOWERS: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 60, "width": 24, "heads": 2, "layers": 3},
}


@pytest.mark.parametrize("form", ["safetensors", "bin", "custom"])
def test_towers_of_open_clip(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers of one depth, each counted in a table of its own."""
    open_clip = pytest.importorskip("open_clip")
    custom = form == "custom"
    network = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**TOWERS)
    folder, out = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    model = {**TOWERS, "text_cfg": {**TOWERS["text_cfg"], "hf_tokenizer_name": "someone/tokenizer"}}
    if custom:
        model["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    if form == "bin":
        torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(
            {n: t.contiguous() for n, t in network.state_dict().items()},
            folder / "open_clip_model.safetensors",
        )
    text = "text.transformer.resblocks" if custom else "transformer.resblocks"
    graph = eir.stretch(eir.load(folder, headers_only=True), to_stages={text: 5})
    found = changed(graph, out, monkeypatch)
    assert found.kind == type(network).__name__
    assert str(found).endswith("as open_clip_config.json has it")
    made = config_of(out, "open_clip_config.json")["model_cfg"]
    assert (made["vision_cfg"]["layers"], made["text_cfg"]["layers"]) == (3, 5)
    del made["text_cfg"]["hf_tokenizer_name"]
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": made, "preprocess_cfg": {}}))
    loaded = open_clip.create_model(f"local-dir:{out}")
    assert sum(p.numel() for p in loaded.parameters()) > sum(p.numel() for p in network.parameters())


def test_a_folder_of_timm_that_would_not_load_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong count that was there before the comparison: names alone would have written it."""
    timm_folder(tmp_path / "source", "vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2, img_size=32)
    graph = eir.stretch(eir.load(tmp_path / "source", headers_only=True), to_units=5)
    plan = plan_checkpoint(graph)
    shapes = {n: d.shape for shard in plan.shards.values() for n, d in shard.items()}
    question = asked(
        (plan.source.config, plan.source.shapes), (plan.source.config, shapes), plan.stacks, search=False
    )
    with pytest.raises(
        EmitError, match=r"VisionTransformer of the new config.json would not load what would be"
    ):
        judged(answer(json.loads(json.dumps(question))))
