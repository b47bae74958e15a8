"""What the facts of a network amount to, and the table of all of them as Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from benchmarks.layout_networks.entry import Network

Facts: TypeAlias = Mapping[str, Any]
VERDICTS = ("right", "refused", "wrong", "crash", "untraced", "broken")
STEPS = ("change", "native", "onnx")

HEAD = """\
# Layouts: networks of many libraries, and the stages that their code has

Written by `python -m benchmarks.layouts` with torch {torch}. Every network has random weights. `stages`: whether what
is found in the trace is what the network's code has, block by block and weight by weight. `change`: stretched by one
unit in each stage, run, and squeezed back bit for bit. `native`: the natively deeper network, where the constructor has
a depth, loads the stretched weights with `strict=True` and gives equal outputs. `names`: whether the state dict alone
shows what the trace does (it does not count). `ONNX`: of a tenth, the stretched network in onnxruntime against PyTorch.

A verdict is `right`; `refused` although it is possible, or where it is not, with a sentence that does not name the
reason; `wrong`; `crash`; `untraced`, where neither torch.fx nor torch.export reads the forward; `broken` for a fault of
the table or of the environment.
"""

REPLACED = """\
## Libraries that are not in it

| library | why | in its place |
|---|---|---|
| alphafold2-pytorch | needs sidechainnet and pytorch3d at import | `own_evoformer` |
| schnetpack | imports a name from `torch.utils.data.dataloader` that this torch no longer has | \
`own_scalars_and_vectors`, SchNet of PyTorch Geometric |
| python-doctr, cellpose | want an older huggingface-hub; segment_anything | MONAI, kornia |
| descript-audio-codec | needs descript-audiotools, which pins old versions | snac, encodec |
| basicsr | imports a module that torchvision has removed | spandrel |
"""


def verdict(network: Network, facts: Facts) -> tuple[str, str]:
    """The outcome in a word, and why."""
    raised = facts.get("raised", "")
    if raised:
        return (
            "broken" if facts.get("phase", "build") == "build" else "crash"
        ), f"{facts.get('phase')}: {raised}"
    if facts.get("table"):
        return "broken", "; ".join(facts["table"])
    stages, texts = facts.get("stages", ""), {step: str(facts.get(step) or "") for step in STEPS}
    if stages == "untraced":
        return "untraced", facts["message"]
    for step, text in texts.items():
        if text.startswith("wrong"):
            return "wrong", f"{step}: {text.removeprefix('wrong: ')}"
    refusals = [facts["message"]] if stages == "refused" else []
    refusals += [
        texts[s].removeprefix("refused: ") for s in ("change", "native") if texts[s].startswith("refused")
    ]
    allowed = network.refused or network.may_refuse
    if refusals:
        if not allowed:
            return ("wrong", _differs(facts)) if stages == "wrong" else ("refused", refusals[0])
        if re.search(network.says or "$^", refusals[0]):
            return "right", refusals[0]
        return "refused", f"rightly ({allowed}), but it says: {refusals[0]}"
    if network.refused:
        return "wrong", f"changed, though {network.refused}"
    if stages == "wrong" and (network.stages or not network.may_refuse):
        return "wrong", _differs(facts)
    return "right", ""


def _differs(facts: Facts) -> str:
    missing, extra = (", ".join(f"`{name}`" for name in facts.get(key, [])) for key in ("missing", "extra"))
    return f"stages: {f'without {missing}' if missing else ''}{', ' if missing and extra else ''}" + (
        f"with {extra}" if extra else ""
    )


def report(results: Sequence[Facts], torch_version: str) -> str:
    """The whole table."""
    lines = [HEAD.format(torch=torch_version)]
    libraries = {result["library"] for result in results} - {"own"}
    own = sum(result["library"] == "own" for result in results)
    lines += [f"{totals(results, len(libraries), own)}", "", "## By kind", ""]
    lines += _grouped(results, "kind", lambda result: result["kinds"])
    lines += ["", "## By library", ""]
    lines += _grouped(
        results, "library", lambda result: [f"{result['library']} {result['version']}".strip(" -")]
    )
    lines += [
        "",
        "## By network",
        "",
        "| network | library | kinds | verdict | stages | change | native | names | ONNX |",
    ]
    lines.append("|---" * 9 + "|")
    lines += [_row(result) for result in results]
    others = [result for result in results if result["verdict"] != "right"]
    others.sort(key=lambda result: VERDICTS.index(result["verdict"]))
    if others:
        lines += ["", "## What is not right", ""]
        lines += [
            f"- {result['verdict']}: `{result['name']}`: {_short(result['reason'])}" for result in others
        ]
    refused = [result for result in results if result["verdict"] == "right" and result["reason"]]
    if refused:
        lines += ["", "## Rightly refused, and the sentence", ""]
        lines += [f"- `{result['name']}`: {_short(result['reason'])}" for result in refused]
    onnx = [result for result in results if str(result.get("onnx", "")).startswith("refused")]
    if onnx:
        lines += ["", "## Not exported to ONNX", ""]
        lines += [
            f"- `{result['name']}`: {_short(result['onnx'].removeprefix('refused: '))}" for result in onnx
        ]
    lines += ["", REPLACED]
    return "\n".join(lines).rstrip() + "\n"


def totals(results: Sequence[Facts], libraries: int, own: int) -> str:
    """The counts in three sentences."""
    counts = Counter(result["verdict"] for result in results)
    traced = len(results) - counts["untraced"] - counts["broken"]
    native, onnx, names = (
        Counter(_word(result.get(key)) for result in results if result.get(key))
        for key in ("native", "onnx", "names_as_traced")
    )
    refused = sum(result["verdict"] == "right" and bool(result["reason"]) for result in results)
    revisions = Counter(result.get("revision") or "unknown" for result in results)
    measured = ", ".join(f"{count} at {name}" for name, count in revisions.most_common())
    return (
        f"{len(results)} networks: {len(results) - own} of {libraries} libraries, and {own} minimal ones written for "
        f"this table.\n{', '.join(f'{counts[word]} {word}' for word in VERDICTS if counts[word])}; of {traced} that "
        f"can be traced {100 * counts['right'] / max(traced, 1):.1f} % are right, {refused} of these by a refusal.\n"
        f"Natively deeper: {native['equal']} of {native.total()} equal. ONNX: {onnx['equal']} of {onnx.total()} "
        f"equal. Names show what the trace does in {names['equal']} of {names.total()}.\n"
        f"Measured at the commits: {measured}."
    )


def _grouped(results: Sequence[Facts], title: str, groups: Callable[[Facts], Sequence[str]]) -> list[str]:
    table: dict[str, Counter[str]] = {}
    for result in results:
        for group in groups(result):
            table.setdefault(group, Counter())[result["verdict"]] += 1
    lines = [f"| {title} | networks | {' | '.join(VERDICTS)} |", "|---" * (len(VERDICTS) + 2) + "|"]
    for group, counts in sorted(table.items(), key=lambda item: item[0].lower()):
        cells = [group, str(counts.total()), *(str(counts[word] or "") for word in VERDICTS)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _row(result: Facts) -> str:
    names = result.get("names_as_traced") or (f"{result['names']} (untraced)" if result.get("names") else "")
    cells = [
        f"`{result['name']}`", f"{result['library']} {result['version']}".strip(" -"), ", ".join(result["kinds"]),
        result["verdict"], result.get("stages", ""), _word(result.get("change")), _word(result.get("native")),
        "refused" if result.get("names") == "refused" else names, _word(result.get("onnx")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _word(text: object) -> str:
    return str(text or "").split(":")[0]


def _short(text: str, limit: int = 400) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit].rsplit(' ', 1)[0]} ..."
