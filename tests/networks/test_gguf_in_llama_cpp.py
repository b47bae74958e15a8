"""llama.cpp reads a changed GGUF file, and says of the next token what transformers says from the changed folder."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import elastic_ir as eir
from tests.networks.gguf_families import FAMILIES, MODELS, made

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp, a build of llama.cpp, is not there"
    ),
]

PROMPT = list(range(12))
VOCABULARY = 48
#: Run in a process of its own: llama.cpp ends the whole one where a file makes it fail.
ASK = """
import json, sys
import xllamacpp

path, prompt, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.n_ctx, parameters.n_parallel, parameters.warmup = 64, 1, False
parameters.cpuparams.n_threads = 1
parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
answer = xllamacpp.Server(parameters).handle_completions(
    {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 48}
)
with open(out, "w") as file:
    json.dump(answer, file)
"""


def _next_token(file: Path) -> tuple[int, torch.Tensor]:
    """The token that llama.cpp generates behind the prompt, and the logarithms of all tokens' probabilities."""
    out = file.with_suffix(".json")
    command = [sys.executable, "-c", ASK, str(file), json.dumps(PROMPT), str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = json.loads(out.read_text())["choices"][0]["logprobs"]["content"][0]
    found = torch.full((VOCABULARY,), torch.nan)
    for one in said["top_logprobs"]:
        found[one["id"]] = one["logprob"]
    return said["id"], found


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_token_is_generated_as_the_folder_would(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder, file = tmp_path / "folder", tmp_path / "m.gguf"
    source = made(name, folder, file)
    eir.save(eir.stretch(eir.load(folder, headers_only=True), plan=family.plan), tmp_path / "deeper")
    eir.save(
        eir.stretch(eir.load(file), plan=family.plan, unit=family.unit or None), tmp_path / "deeper.gguf"
    )
    wanted = MODELS.from_pretrained(tmp_path / "deeper").eval()
    with torch.no_grad():
        expected, before = (
            torch.log_softmax(model(torch.tensor([PROMPT])).logits[0, -1].float(), -1)
            for model in (wanted, source.eval())
        )
    token, found = _next_token(tmp_path / "deeper.gguf")
    assert token == int(expected.argmax())
    assert torch.allclose(found, expected, atol=2e-2)
    assert not torch.allclose(before, expected, atol=0.2)
