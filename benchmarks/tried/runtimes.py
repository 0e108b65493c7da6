"""The exported policies in each ONNX Runtime that can be had for this Python, and in K-Scale's kinfer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
KINFER = "0.6.1"
KINFER_STEPS, LIMIT = 20, 1e-5
# Run with the version of ONNX Runtime that is first on the path: what the robot does with each bundle.
_WORKER = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
from deploy.bundle.session import OnnxPolicy, self_test
from robots.bundle import read_bundle

root, folder = Path(sys.argv[1]), Path(sys.argv[2])
for shipped in sorted((root / "robots/kbot/policies").glob("*.kinfer")):
    bundle = read_bundle(shipped)
    self_test(OnnxPolicy(bundle), bundle.spec)
wrong, worst, files = [], 0.0, sorted(folder.glob("*.kinfer"))
for path in files:
    rows = dict(np.load(path.with_suffix(".npz")))
    expected = rows.pop("actions")
    try:
        policy = OnnxPolicy(read_bundle(path))
        got = np.stack([policy.step({n: v[k] for n, v in rows.items()}) for k in range(len(expected))])
        error = float((np.abs(got - expected) / np.maximum(1, np.abs(expected))).max())
    except Exception as error:
        wrong.append(f"{path.stem}: {type(error).__name__}")
        continue
    worst = max(worst, error)
    if not error <= 1e-5:
        wrong.append(f"{path.stem}: {error:.1e}")
print(f"{onnxruntime.__version__}|{len(files) - len(wrong)} of {len(files)}|{worst:.1e}|{', '.join(wrong)}")
"""


def versions() -> list[str]:
    """The last version of each minor one from the floor in pyproject.toml on that pip finds for this Python."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    floor = next(re.findall(r"[\d]+", n)[:2] for n in needs if n.startswith("onnxruntime"))
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", "onnxruntime"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Available versions: (.*)", done.stdout)
    last: dict[tuple[int, int], str] = {}
    for version in found[1].split(", ") if found else []:
        minor = tuple(int(n) for n in version.split(".")[:2])
        if minor >= tuple(map(int, floor)):
            last.setdefault(minor, version)  # the newest come first
    return [last[minor] for minor in sorted(last)]


def _runtime(version: str, folder: Path) -> str:
    place = folder / f"onnxruntime-{version}"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", place]
    if subprocess.run([*pip, f"onnxruntime=={version}"], capture_output=True).returncode:
        return "| not tried | | pip cannot install it here |"
    path = os.pathsep.join([str(place), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WORKER, str(ROOT), str(folder)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        return f"| | | {done.stderr.strip().splitlines()[-1]} |"
    got, count, worst, wrong = done.stdout.strip().split("|")
    assert got == version, f"asked for {version}, got {got}"
    return f"| {count} | {worst} | {wrong} |"


def _kinfer(files: Sequence[Path], folder: Path) -> str:
    """Whole policies in kinfer, which paces itself: the shipped ones, and those of the table's first part."""
    python = ROOT / ".cache" / f"kinfer-{KINFER}-py{sys.version_info.major}.{sys.version_info.minor}" / "bin/python"
    if not python.is_file():
        return "| not tried | | tests/export/test_interop.py makes its environment, in .cache |"
    good, worst, wrong = 0, 0.0, []
    for path in files:
        rows = {k: v[:KINFER_STEPS] for k, v in np.load(path.with_suffix(".npz")).items()}
        expected = rows.pop("actions")
        given, out = folder / "given.npz", folder / "out.npy"
        np.savez(given, **rows)
        runner = [python, ROOT / "tests/export/kinfer_runner.py", path, given, out]
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(runner, capture_output=True, text=True, env=clean, timeout=300)
        if done.returncode:
            wrong.append(f"{path.stem}: {done.stderr.strip().splitlines()[-1]:.80}")
            continue
        error = float((np.abs(np.load(out) - expected) / np.maximum(1, np.abs(expected))).max())
        worst, good = max(worst, error), good + (error <= LIMIT)
        wrong += [f"{path.stem}: {error:.1e}"] * (error > LIMIT)
    return f"| {good} of {len(files)} whole policies | {worst:.1e} | {', '.join(wrong)} |"


def tables(folder: Path) -> Iterator[str]:
    """One table; the policies are those that were exported into the folder, with their inputs and actions."""
    yield f"\n## Runtimes\n\nPython {sys.version.split()[0]}.\n"
    yield "| runtime | policies as in JAX | greatest difference of an action | otherwise |\n|---|---|---|---|"
    found = versions()
    if not found:
        yield "| onnxruntime | not tried | | pip finds no versions here |"
    for version in found:
        yield f"| onnxruntime {version} {_runtime(version, folder)}"
    yield f"| kinfer {KINFER} (ONNX Runtime 1.20) {_kinfer(sorted(folder.glob('00_*.kinfer')), folder)}"
