"""There is one policy function: nobody else turns sensor values into what a network sees, or actions into targets."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for layer in ("robots", "deploy", "ksim", "export") for p in (ROOT / layer).rglob("*.py"))
RAW = {"joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope", "accelerometer"}
JOINING = {"concatenate", "concat", "hstack", "stack", "column_stack", "r_"}


def strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def functions(path: Path) -> list[tuple[str, ast.AST]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(n.name, n) for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda)) and hasattr(n, "name")]


def calls(node: ast.AST) -> set[str]:
    called = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id for f in called if isinstance(f, (ast.Attribute, ast.Name))
    }


def encoders() -> set[str]:
    """Functions that name two raw inputs or more, and join arrays."""
    found = set()
    for path in SOURCES:
        for name, node in functions(path):
            if len(strings(node) & RAW) >= 2 and calls(node) & JOINING:
                found.add(f"{path.relative_to(ROOT)}:{name}")
    return found


def test_the_observation_is_put_together_in_one_function():
    # the mirror's map is found by decoding and encoding; tests/ksim/test_mirrored_observation.py holds it to encode
    assert encoders() == {"ksim/learning/policy.py:encode", "ksim/learning/symmetry.py:encoded"}


def test_its_scales_are_in_the_table_of_inputs_alone():
    users = {str(p.relative_to(ROOT)) for p in SOURCES if "Encoding(scale=" in p.read_text(encoding="utf-8")}
    assert users == {"robots/inputs.py"}


def test_no_second_table_lists_the_inputs():
    """A dict or a tuple at the top of a module that names three inputs or more."""
    found = set()
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and len(strings(node) & RAW) >= 3:
                found.add(f"{path.relative_to(ROOT)}:{ast.unparse(node).split(' =')[0]}")
    # the second is what other toolkits call them
    assert found == {"robots/inputs.py:POLICY_INPUTS", "export/onnx_metadata.py:TERMS"}


def test_encode_is_called_by_the_step_and_by_the_rollout_of_training_alone():
    users = set()
    for path in SOURCES:
        for name, node in functions(path):
            if any(isinstance(n, ast.Attribute) and n.attr == "encode" and _of_policy(n) for n in ast.walk(node)):
                users.add(f"{path.relative_to(ROOT)}:{name}")
    assert users == {"ksim/learning/policy.py:step", "ksim/learning/trainer.py:tick"}


def _of_policy(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "policy")


def test_raw_actions_become_targets_in_one_class():
    users = {str(p.relative_to(ROOT)) for p in SOURCES if "JointTargets" in p.read_text(encoding="utf-8")}
    assert users == {"ksim/actions.py", "ksim/learning/policy.py"}


def test_the_robot_side_only_names_raw_inputs():
    source = (ROOT / "deploy" / "bundle" / "session.py").read_text(encoding="utf-8")
    observe = next(n for name, n in functions(ROOT / "deploy" / "bundle" / "session.py") if name == "observe")
    # values are taken from the state as they are: no arithmetic in it
    assert not [n for n in ast.walk(observe) if isinstance(n, (ast.BinOp, ast.UnaryOp)) and not _annotation(n)]
    assert source.count("def observe(") == 1


def _annotation(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
