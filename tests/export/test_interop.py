"""K-Scale's own runtime, kinfer 0.6.1 with ONNX Runtime 1.20, runs our bundles to the same actions.

It lives in an environment of its own, `.cache/kinfer-0.6.1-*`, which the first run makes and later ones find.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np

from deploy.bundle.session import OnnxPolicy
from robots import Bundle, read_bundle, write_bundle
from robots.spec import ArraySpec
from tests.export.conftest import KINFER

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "robots" / "kbot" / "policies" / "stand.kinfer"
STEPS = 1000


def drawn(spec: ArraySpec, rng: np.random.Generator) -> np.ndarray:
    """Values within the range of an input, (STEPS, n): half of them slow, half of them as rough as can be."""
    low, high = (np.broadcast_to(v, spec.shape) for v in (spec.low, spec.high))
    time = np.arange(STEPS // 2)[:, None]
    phase, speed = rng.uniform(0, 2 * np.pi, spec.shape), rng.uniform(0.01, 0.2, spec.shape)
    slow = low + (high - low) * (0.5 + 0.5 * np.sin(phase + speed * time))
    rough = rng.uniform(low, high, (STEPS - STEPS // 2, *spec.shape))
    return np.concatenate([slow, rough]).astype(np.float32)


def theirs(python: Path, kinfer: Path, inputs: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]
    runner = [python, Path(__file__).with_name("kinfer_runner.py"), kinfer, folder / "inputs.npz", folder / "out.npy"]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(runner, capture_output=True, text=True, env=clean, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [KINFER, "1.20.0", str(STEPS)]
    return np.load(folder / "out.npy")


def compare(python: Path, path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(their actions, ours), (STEPS, joints) each, over the same inputs."""
    bundle = read_bundle(path)
    assert bundle.spec is not None
    rng = np.random.default_rng(7)
    inputs = {spec.name: drawn(spec, rng) for spec in bundle.spec.inputs}
    policy = OnnxPolicy(bundle)
    ours = np.stack([policy.step({n: v[k] for n, v in inputs.items()}) for k in range(STEPS)])
    return theirs(python, path, inputs, folder), ours


def test_the_shipped_bundle_runs_unchanged_in_k_scales_runtime(kinfer_python, tmp_path):
    got, ours = compare(kinfer_python, SHIPPED, tmp_path)
    assert got.shape == ours.shape == (STEPS, 20)
    assert np.ptp(ours, axis=0).max() > 0.1, "the actions vary"
    np.testing.assert_allclose(got, ours, rtol=0, atol=1e-5)


def test_a_fresh_export_runs_unchanged_in_k_scales_runtime(kinfer_python, bundle: Bundle, tmp_path):
    write_bundle(tmp_path / "policy.kinfer", bundle)
    got, ours = compare(kinfer_python, tmp_path / "policy.kinfer", tmp_path)
    assert np.ptp(ours, axis=0).max() > 0.1, "the actions vary"
    np.testing.assert_allclose(got, ours, rtol=0, atol=1e-5)
