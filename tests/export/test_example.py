"""The example of a policy that is not ours, as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deploy.bundle.preflight import prepare
from deploy.bundle.session import OnnxPolicy
from robots import read_bundle

ROOT = Path(__file__).parents[2]


def test_the_example_exports_a_foreign_policy_and_proves_it_on_its_own_recordings(tmp_path):
    out = tmp_path / "arm.kinfer"
    done = subprocess.run(
        [sys.executable, "examples/export_your_own.py", "-o", out],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over 10,000 carried steps of recorded inputs" in done.stdout
    bundle = read_bundle(out)
    assert bundle.joint_names == ("shoulder", "elbow", "wrist") and bundle.command_names == ("reach",)
    assert [(p.name, p.size) for p in bundle.spec.carry_layout] == [("h", 32), ("last", 3)]
    # `ksim run` takes it as it is, and says what was not proven
    assert prepare(out, None, {}).warnings == ("the bundle's proofs are reduced: numbers alone, not run in simulation",)
    assert set(OnnxPolicy(bundle).inputs) == {"joint_angles", "joint_angular_velocities", "command"}
