"""Imports point down only: what a layer must not load in a fresh interpreter, or name at all; none go in circles."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEARNING = {"jax", "jaxlib", "equinox", "optax", "ksim", "export"}
WIRE = {"grpc", "pykos", "kos_protos", "onnxruntime", "mcap"}

LOADED = [
    (["toolkit.cli", "toolkit.files", "toolkit.yaml_file", "toolkit.strict_json"],
     LEARNING | WIRE | {"mujoco", "deploy", "robots", "numpy"}),
    (["robots", "robots.spec", "robots.load", "robots.motor", "robots.delay", "robots.bundle"],
     LEARNING | WIRE | {"mujoco", "deploy"}),
    # MuJoCo is imported when a model is built
    (["robots.model"], LEARNING | WIRE | {"mujoco", "deploy"}),
    (["deploy.robot.safety"], LEARNING | WIRE | {"mujoco"}),
    (["deploy.control.run", "deploy.control.loop", "deploy.control.check", "deploy.robot.kos", "deploy.bundle.session",
      "deploy.bundle.preflight", "deploy.log.recorder", "deploy.sysid.excite"],
     LEARNING | {"mujoco", "viser", "trimesh"}),
    (["deploy.twin.server"], LEARNING),
    (["deploy.parity.layers"], LEARNING),
    (["deploy.sysid.command"], LEARNING),
    # numpy takes a while, in which Ctrl-C would be a traceback
    (["ksim", "ksim.cli"], {"jax", "jaxlib", "equinox", "optax", "mujoco", "export", "robots", "numpy"} | WIRE),
    (["ksim.train_command", "ksim.evaluate_command"],
     {"jax", "jaxlib", "equinox", "optax", "mujoco", "export", "robots", "numpy"} | WIRE),
    # the terms need JAX; what a task is needs no engine
    (["ksim.config", "ksim.tasks", "ksim.load"], {"mujoco", "export", "deploy"} | WIRE),
    (["ksim.environment", "ksim.learning.trainer"], {"export", "deploy"} | WIRE),
]  # fmt: skip


@pytest.mark.parametrize(("modules", "forbidden"), LOADED, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_importing_a_layer_loads_nothing_above_it(modules, forbidden):
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert modules[0].split(".")[0] in loaded
    assert not loaded & forbidden


def imported(path: Path) -> set[str]:
    """Every package that a file imports anywhere in it, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("toolkit", LEARNING | WIRE | {"deploy", "robots"}),
        ("robots", LEARNING | WIRE | {"deploy"}),
        ("deploy", LEARNING),
        ("ksim", WIRE),  # ksim demo runs what export makes, and ksim eval bundles
    ],
)
def test_no_file_of_a_layer_imports_upwards_even_lazily(layer, forbidden):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    upwards = {path.name: sorted(imported(path) & forbidden) for path in files if imported(path) & forbidden}
    assert upwards == {}


def test_in_deploy_only_the_simulating_rooms_import_mujoco():
    using = {path.parent.name for path in (ROOT / "deploy").rglob("*.py") if "mujoco" in imported(path)}
    assert using == {"twin", "parity", "sysid", "view"}


LAYERS = ("toolkit", "robots", "deploy", "ksim", "export")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    out = {}
    for layer in LAYERS:
        for path in (root / layer).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def names_of(path: Path, known: Collection[str]) -> set[str]:
    """Modules that a file imports, at its top or inside its functions; what is only for type checkers counts not."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
                whole = {f"{child.module}.{alias.name}" for alias in child.names}
                found.update(whole & set(known) or {child.module})
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found & set(known)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules each of which reaches the others, sorted (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    least: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def go(node: str) -> None:
        number[node] = least[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                go(other)
                least[node] = min(least[node], least[other])
            elif other in stack:
                least[node] = min(least[node], number[other])
        if least[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in graph[node]:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in number:
            go(node)
    return found


def test_no_modules_import_each_other_in_a_circle_even_lazily():
    known = modules()
    graph = {name: names_of(path, known) for name, path in known.items()}
    assert sum(map(len, graph.values())) > 200  # it found the imports that there are
    assert circles(graph) == []


def test_a_circle_is_found_whether_it_is_at_the_top_or_inside_a_function(tmp_path):
    package = tmp_path / "ksim"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from ksim import b\n")
    (package / "b.py").write_text("def f():\n    from ksim.c import g\n    return g\n")
    (package / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ksim.d import h\nimport ksim.a\n"
    )
    (package / "d.py").write_text("import ksim.c\n")
    known = modules(tmp_path)
    graph = {name: names_of(path, known) for name, path in known.items()}
    assert circles(graph) == [["ksim.a", "ksim.b", "ksim.c"]]
    assert circles({"x": {"x"}, "y": set()}) == [["x"]]
