"""Every block of every page runs, in order, in an empty folder, or gives the reason why it does not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.docs.pages import ROOT, Page, agrees, blocks, commands, run_here

#: Those whose Python or commands take long; what they show is tested beside the code in less time.
SLOW = {
    "README.md",
    "docs/adapters.md",
    "docs/baselines.md",
    "docs/checkpoints.md",
    "docs/compact.md",
    "docs/lottery.md",
    "docs/onnx-to-torch.md",
    "docs/onnx.md",
    "docs/passes.md",
    "docs/ticket-file.md",
    "docs/training-checkpoints.md",
    "docs/tutorials/language-model.md",
    "docs/tutorials/ten-minutes.md",
    "docs/tutorials/ticket.md",
    "docs/writing-formats.md",
    "docs/writing-passes.md",
}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "studies/README.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in PAGES]
)
def test_every_block_of_a_page_runs(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text("utf-8")
    if not any(block.runs for block in blocks(text)):
        return
    folder, said = tmp_path / "folder", tmp_path / "said"
    folder.mkdir()
    process = warm.context().Process(target=run_here, args=(ROOT / page, folder, said))
    process.start()
    process.join(800)
    process.kill()
    process.join()
    assert process.exitcode == 0, said.read_text("utf-8")


def test_a_block_that_says_nothing_about_itself_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 2: a block of 'yaml' needs a mark: one of not run:, "):
        blocks("```yaml\na: 1\n```\n")
    with pytest.raises(ValueError, match="line 3: the mark above the block gives no reason or name"):
        blocks("<!-- not run: -->\n```console\n$ ls\n```\n")
    with pytest.raises(ValueError, match="line 2: a console block begins with a command"):
        list(commands(blocks("```console\nls\n```\n")[0]))
    marked, bare = blocks(
        "<!-- not run: so\nit is -->\n<!-- file: a -->\n\n```sh\nx\n```\n\n```python\n1\n```\n"
    )
    assert marked.marks == {"not run:": "so it is", "file:": "a"} and not marked.runs
    assert bare.marks == {} and bare.runs


def test_what_is_printed_is_compared() -> None:
    assert agrees("a ... 3\n...\nb", "a 1 2 3\nx\ny\nb\n") and not agrees("a\nb", "a\nx\nb")
    assert not agrees("1.5 MB", "1.6 MB") and agrees("1.5 MB", "16 MB", numbers=False)
    assert not agrees("1.5 MB", "1.5 kB", numbers=False)


PAGE = """
```python
answer = 6 * 7
answer  # {value}
print("loss", 0.25)
```

<!-- printed -->

```text
loss {loss}
```

<!-- file: a.txt -->

```text
content
```

```console
$ cat a.txt \\
      | tr a-z A-Z
CONTENT
$ elastic-ir inspect none.pt
{told}
```
"""
RIGHT = {"value": "42", "loss": "0.25", "told": "error: none.pt does not exist"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, ""),
        ({"value": "41"}, "answer is 42, not 41"),
        ({"loss": "0.5"}, "page.md, line 11: shown is"),
        ({"told": "depth: 3"}, "exit status 1 of elastic-ir inspect none.pt"),
        ({"told": "error: none.pt is damaged"}, "printed was\nerror: none.pt does not exist"),
    ],
)
def test_a_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.modules", dict(sys.modules))
    Path("page.md").write_text(PAGE.format(**{**RIGHT, **wrong}))
    if not wrong:
        return Page(Path("page.md")).run()
    with pytest.raises(AssertionError, match=re.escape(said)):
        Page(Path("page.md")).run()
    return None
