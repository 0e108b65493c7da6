"""Imports point down only: what each layer must not load, in a fresh interpreter, and must not name at all."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
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
    (["deploy.safety"], LEARNING | WIRE | {"mujoco"}),
    (["deploy.run", "deploy.kos", "deploy.policy", "deploy.recorder", "deploy.preflight", "deploy.loop"],
     LEARNING | {"mujoco"}),
    (["deploy.twin"], LEARNING),
    (["deploy.parity"], LEARNING),
    # numpy takes a while, in which Ctrl-C would be a traceback
    (["ksim", "ksim.cli"], {"jax", "jaxlib", "equinox", "optax", "mujoco", "export", "robots", "numpy"} | WIRE),
    (["ksim.config", "ksim.curriculum"], {"jax", "jaxlib", "equinox", "mujoco", "export"} | WIRE),
    (["ksim.environment", "ksim.tasks"], {"export"} | WIRE),
]  # fmt: skip


@pytest.mark.parametrize(("modules", "forbidden"), LOADED, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_importing_a_layer_loads_nothing_above_it(modules, forbidden):
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert modules[0].split(".")[0] in loaded
    assert not loaded & forbidden


def test_the_training_core_loads_nothing_of_deploy():
    code = "import sys, ksim.cli, ksim.config, ksim.tasks; print(*(m for m in sys.modules if m.startswith('deploy')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


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
        ("ksim", WIRE),
    ],
)
def test_no_file_of_a_layer_imports_upwards_even_lazily(layer, forbidden):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    upwards = {path.name: sorted(imported(path) & forbidden) for path in files if imported(path) & forbidden}
    assert upwards == {}


def test_in_deploy_only_the_simulating_rooms_import_mujoco():
    using = {path.stem for path in (ROOT / "deploy").glob("*.py") if "mujoco" in imported(path)}
    assert using <= {"plant", "twin", "parity", "windows", "sysid", "report"}
