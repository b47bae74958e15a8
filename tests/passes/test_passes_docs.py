"""What docs/passes.md says of names and of its recipe; tests/docs/test_pages.py runs its Python and its commands."""

from __future__ import annotations

import re
from pathlib import Path

from elastic_ir.passes import registered
from elastic_ir.passes.infra.recipe import read_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "passes.md").read_text("utf-8")


def test_the_recipe_is_the_pipeline_that_it_says(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    assert f"`{read_recipe(path)}`" in PAGE


def test_passes_that_it_names_are_there() -> None:
    for name in ("ghost-skips", "ghost-softness", "remove-ghosts", "layerwise-rescale"):
        assert f"`{name}`" in PAGE and name in registered()
