"""Imports point one way (docs/architecture.md): models know no data, nothing knows the launch scripts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMON = {"errors", "output", "budget", "fields", "files", "precision", "progress", "randomness", "spread", "threads"}
COMMON |= {"images"}
ALLOWED = {  # folder or module of elk_jax -> what else of elk_jax it may import (its own folder always)
    "output": set(),
    "errors": {"output"},
    "budget": {"errors"},
    "precision": {"errors"},
    "fields": {"errors"},
    "files": {"errors", "budget"},
    "output_folders": {"errors", "files"},
    "randomness": {"errors", "fields"},
    "spread": set(),
    "progress": {"threads", "output"},
    "threads": set(),
    "turns": set(),
    "host_memory": set(),
    "images": {"errors"},
    "backbones": {"errors", "fields", "precision"},
    "detection": {"errors", "fields", "precision", "turns", "backbones"},
    "diffusion": {"errors", "fields", "precision", "images", "backbones"},
    "distillation": {"errors", "fields", "precision"},
    "gan": {"errors", "fields", "precision", "backbones"},
    "synthesis": COMMON,
    "data": COMMON | {"synthesis", "privacy"},
    "features": COMMON,
    "heads": COMMON | {"features"},
    "training": COMMON | {"privacy", "turns"},
    "privacy": COMMON,
    "programs": COMMON | {"host_memory"},
    "evaluation": COMMON,
    "weights": COMMON | {"backbones", "detection", "diffusion", "gan", "privacy"},
    "reporting": COMMON | {"evaluation"},
    "tasks": COMMON
    | {"distillation", "gan"}
    | {"backbones", "detection", "diffusion", "data", "training", "evaluation", "weights", "reporting", "synthesis"}
    | {"features", "heads", "privacy"},
    "distances": COMMON | {"data", "evaluation", "reporting", "backbones", "weights", "host_memory"},
    "planning": COMMON | {"experiments", "tasks", "programs", "training", "reporting", "privacy"},
    "experiments": COMMON | {"tasks", "data", "training", "reporting", "weights"},
    "sweeps": COMMON | {"experiments", "tasks", "evaluation", "reporting", "features"},
}
NEVER = {
    "torch",
    "torchvision",
    "tensorflow",
    "diffusers",
    "transformers",
    "timm",
    "opacus",
    "launch",
    "configs",
    "tests",
}


def imported_names(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add("relative import")
    return names


def violations(path: Path, own: str) -> list[str]:
    found = []
    for name in imported_names(path):
        top = name.split(".")[0]
        if top in NEVER or name == "relative import":
            found.append(name)
        elif top == "elk_jax" and "." in name:
            inner = name.removeprefix("elk_jax.")
            allowed = ALLOWED[own] | {own}
            if not any(inner == a or inner.startswith(a + ".") for a in allowed) and inner != "__version__":
                found.append(name)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "elk_jax").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_only_what_lies_below_it(path):
    own = path.relative_to(ROOT / "elk_jax").parts[0].removesuffix(".py")
    if own == "__init__":
        assert not imported_names(path)
        return
    assert own in ALLOWED, f"say in this table what elk_jax.{own} may import"
    assert not violations(path, own)


def test_a_wrong_import_is_seen(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import torch\nfrom elk_jax.tasks import detection\nfrom elk_jax.errors import UserError\n")
    assert sorted(violations(wrong, "detection")) == ["elk_jax.tasks.detection", "torch"]
