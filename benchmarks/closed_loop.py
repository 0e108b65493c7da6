"""The loop closed on a hidden reality: excite, identify, compare, then train with what was found and without.

    python benchmarks/closed_loop.py --out runs/loop --steps 1500000

A twin hides a reality drawn by the seed: gains, friction, stiction, play, rotors, a delay. It is known to the twin
alone. Three policies go on from the shipped one, for as many steps each: one on the robot as described, one with the
ranges that a report of parity widened, one on the robot as measured. All then stand in the hidden reality under pushes.
A stage that is done leaves its answer in the folder, and is not done again: `--from sysid` does that stage and
what comes after it anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from deploy.sysid.calibration import Calibration, load_calibration
from deploy.twin.plant import TIMESTEP_S
from deploy.twin.server import spawn_twin
from ksim.demo_stages import Stages
from robots.load import load_robot
from toolkit.errors import ToolkitError
from toolkit.files import atomic_path, shipped_policy

ROBOT = "kbot"
POLICIES = ("described", "widened", "measured")
# what it is fitted to, and what it is judged by
SEEN, UNSEEN = ("chirp", "steps", "sweeps", "multisine"), ("multisine", "hold")
FIT = ("kp", "kd", "friction", "stiction", "armature", "velocity_max", "delay_s")
STAGES = ("hidden", "excite", "sysid", "parity", "compare", "train", "export", "survive")
# a log of excitation is of a robot that hangs, and has no policy to replay
HUNG = ("--held",)
PUSHES = {"force_max_n": 50.0, "force_min_n": 25.0, "duration_s": [0.1, 0.5], "interval_s": [1.5, 2.5], "start_s": 1.5}
NOISE = {"position_noise_rad": 0.001, "velocity_noise_rad_s": 0.02, "gyro_noise_rad_s": 0.01}


def draw_hidden(seed: int, worse: float) -> dict[str, Any]:
    """A reality whose joints differ; `worse` scales how far."""
    draw, names = np.random.default_rng(seed), load_robot(ROBOT).joint_names

    def each(low: float, high: float, neutral: float) -> dict[str, float]:
        return {
            n: float(neutral + worse * (v - neutral)) for n, v in zip(names, draw.uniform(low, high, 20), strict=True)
        }

    ankles = [n for n in names if "ankle" in n]
    return {
        "name": f"hidden {seed}",
        "joints": {
            "kp_scale": each(0.6, 1.1, 1.0),
            "kd_scale": each(0.6, 1.4, 1.0),
            "armature_scale": each(0.8, 1.3, 1.0),
            "friction_add_nm": each(0.0, 0.6, 0.0),
            "stiction_nm": each(0.0, 0.5, 0.0),
            "play_rad": {n: float(worse * draw.uniform(0.005, 0.02)) for n in ankles},
        },
        "commands": {"latency_s": float(worse * draw.uniform(0.008, 0.02))},
        "sensors": NOISE,
    }


class Loop:
    """The stages, each a function of what the ones before left in the folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.stages = Stages(self.out, Console(stderr=True), str(self.out / ".jax"))
        self.reality, self.calibration = self.out / "hidden.yaml", self.out / "calibration.yaml"

    def hidden(self) -> dict[str, Any]:
        """Draw the reality."""
        drawn = draw_hidden(self.args.seed, self.args.worse)
        self.reality.write_text(yaml.safe_dump(drawn))
        return drawn

    def excite(self) -> dict[str, Any]:
        """Record a hung twin: motions to fit, and others, of another seed, to judge by."""
        told = {}
        for place, kinds in (("seen", SEEN), ("unseen", UNSEEN)):
            with spawn_twin(ROBOT, reality=self.reality, lockstep=True, start="hang", seed=self.args.seed) as twin:
                words = ["--port", twin.port, "--out", self.out / place, "--step-lock", "--suspended", "--force"]
                words += ["--at-once", "side", "--seconds", self.args.seconds, "--seed", self.args.seed + len(told)]
                runs = self.stages.call("excite", *words, "--kinds", *kinds)["runs"]
            told[place] = [{what: run[what] for what in ("log", "ended", "survived_s", "clamps")} for run in runs]
        return told

    def _logs(self, place: str) -> list[Path]:
        return [self.out / place / f"{kind}.mcap" for kind in (SEEN if place == "seen" else UNSEEN)]

    def sysid(self) -> dict[str, Any]:
        """Fit, and how near the truth it is."""
        words = ["--robot", ROBOT, "--held", "--unseen", *self._logs("unseen"), "-o", self.calibration]
        words += ["--threads", self.args.threads, "--iterations", self.args.iterations, "--timestep", "0.004"]
        words += ["--fit", *FIT]
        found = self.stages.call("sysid", *self._logs("seen"), *words)
        return {
            "unseen": {name: score["ratio"] for name, score in found["unseen"].items()},
            "truth": against_truth(load_calibration(self.calibration), yaml.safe_load(self.reality.read_text())),
        }

    def parity(self) -> dict[str, Any]:
        """Logs that were not fitted, against the robot as described and as measured."""
        told: dict[str, Any] = {}
        for when, more in (("before", ()), ("after", ("--reality", self.calibration))):
            for log in self._logs("unseen"):
                into = self.out / "parity" / f"{when}_{log.stem}"
                report = self.stages.call("parity", log, *HUNG, "--out", into, *more, may_fail=True, label="parity")
                told.setdefault(log.stem, {})[when] = find(report, "joint_position_rmse_rad")
        return told

    def _pushed(self) -> Path:
        """The hidden reality with pushes."""
        path = self.out / "hidden_pushed.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(self.reality.read_text()) | {"pushes": PUSHES}))
        return path

    def _stand(self, name: str, seed: int, log: Path) -> float:
        """How long a policy stands in the hidden reality under the pushes of a seed [s]."""
        with spawn_twin(ROBOT, reality=self._pushed(), lockstep=True, seed=seed) as twin:
            words = (self._bundle(name), "--port", twin.port, "--step-lock", "--duration", self.args.stand_s)
            words += ("--unvalidated", "--log", log, "--force")
            report = self.stages.call("run", *words, may_fail=True, label=f"{name} in the hidden reality")
        return float(report["survived_s"])

    def compare(self) -> dict[str, Any]:
        """A run of the shipped policy against the robot as described: what the report suspects."""
        log = self.out / "compared.mcap"
        self._stand("shipped", 500, log)
        words = (log, "--out", self.out / "compared", "--closed-loop", 0)
        report = self.stages.call("parity", *words, may_fail=True, label="parity of a run")
        return {"suspects": report["suspects"]}

    def train(self) -> dict[str, Any]:
        """The policies, from the shipped one and for as many steps."""
        more = {
            "described": (),
            "widened": ("--parity", self.out / "compared" / "report.json"),
            "measured": ("--calibration", self.calibration),
        }
        told = {}
        for name in POLICIES:
            words = ["--config", "configs/kbot_stand.yaml", "--out", self.out / name, *more[name]]
            begun = (self.out / name / "last.ckpt").exists()
            words += ["--resume"] if begun else ["--init", shipped_policy("stand", ".ckpt")]
            words += ["--set", "run.max_minutes=100000", "--set", f"run.total_steps={self.args.steps}"]
            # the hidden robot's sides differ
            words += ["--set", f"seed={self.args.seed}", "--set", "ppo.symmetry=none"]
            told[name] = self.stages.call("train", *words, label=f"train {name}")
        return told

    def _bundle(self, name: str) -> Path:
        return shipped_policy("stand", ".kinfer") if name == "shipped" else self.out / f"{name}.kinfer"

    def export(self) -> dict[str, Any]:
        """Bundles, with proofs too small to be sure of: one that fails by chance is kept."""
        few = ("--episodes", 8, "--steps", 2000, "--margin-episodes", 0, "--force")
        told = {}
        for name in POLICIES:
            words = (self.out / name / "model.ckpt", "-o", self._bundle(name), *few)
            told[name] = {"failures": self.stages.call("export", *words, may_fail=True).get("failures")}
        return told

    def survive(self) -> dict[str, Any]:
        """Each policy in the hidden reality under pushes, the same ones for each."""
        told: dict[str, Any] = {}
        for name in ("shipped", *POLICIES):
            logs = (self.out / "runs" / f"{name}_{run}.mcap" for run in range(self.args.runs))
            stood = [self._stand(name, 1000 + run, log) for run, log in enumerate(logs)]
            whole = sum(s >= self.args.stand_s - 1e-6 for s in stood)
            told[name] = {"survival": whole / len(stood), "mean_s": float(np.mean(stood)), "stood_s": stood}
        return told


def find(report: Any, key: str) -> float | None:
    """The first value of a key in nested objects, the outermost first; None where there is none."""
    level = [report]
    while level:
        for value in level:
            if isinstance(value, dict) and isinstance(value.get(key), (int, float)):
                return float(value[key])
        level = [inner for value in level if isinstance(value, dict) for inner in value.values()]
    return None


def against_truth(calibration: Calibration, hidden: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By kind of figure: how many are known, their median error and the greatest, and how many intervals hold it."""
    robot, joints, out = load_robot(ROBOT), hidden["joints"], {}
    found = calibration.at_step(TIMESTEP_S)  # the twin's
    for what, setting in (("kp", "kp_scale"), ("kd", "kd_scale"), ("armature", "armature_scale"), ("friction", "")):
        errors, held = [], []
        for joint in robot.joints:
            estimate = getattr(found.joints[joint.name], what)
            if not estimate.known:
                continue
            nominal = joint.friction_nm if what == "friction" else getattr(joint, what)
            true = nominal * joints[setting][joint.name] if setting else nominal + joints["friction_add_nm"][joint.name]
            errors.append(abs(estimate.value / true - 1.0))
            held.append(estimate.low <= true <= estimate.high)
        if errors:
            out[what] = {
                "known": len(errors),
                "median_error": float(np.median(errors)),
                "max_error": float(max(errors)),
                "intervals_that_hold": float(np.mean(held)),
            }
    delay = found.delay_s
    if delay.known:
        out["delay_s"] = {"found": delay.value, "true": hidden["commands"]["latency_s"]}
    return out


def table(done: dict[str, Any]) -> str:
    """What was found, for a person."""
    lines = []
    for what, row in done.get("sysid", {}).get("truth", {}).items():
        lines.append(f"{what:12} " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()))
    for motion, ratio in done.get("sysid", {}).get("unseen", {}).items():
        lines.append(f"replay of {motion}, not fitted: {ratio:.3f} of the described robot's error")
    for motion, row in done.get("parity", {}).items():
        before, after = ("-" if row[w] is None else f"{1e3 * row[w]:.2f} mrad" for w in ("before", "after"))
        lines.append(f"parity {motion:10} joint position RMSE {before} before, {after} after")
    for suspect in done.get("compare", {}).get("suspects", []):
        where = ", ".join(suspect["places"]) or "all"
        lines.append(f"parity of a run suspects {suspect['cause']} ({where}): {suspect['value']} {suspect['unit']}")
    for name, row in done.get("survive", {}).items():
        lines.append(f"{name:12} survives {row['survival']:4.0%}, mean {row['mean_s']:.1f} s")
    return "\n".join(lines)


def main() -> None:
    """Do what is not done, then tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/closed_loop")
    parser.add_argument("--seed", type=int, default=0, help="of the hidden reality and of training")
    parser.add_argument("--worse", type=float, default=1.0, help="scales how far the reality is from the description")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each excitation, for each side")
    parser.add_argument("--iterations", type=int, default=15, help="of the fit at most")
    parser.add_argument("--threads", type=int, default=2, help="of the fit")
    parser.add_argument("--steps", type=int, default=1_500_000, help="of training, each policy")
    parser.add_argument("--runs", type=int, default=20, help="in the hidden reality, each policy")
    parser.add_argument("--stand-s", type=float, default=20.0, help="length of each of them")
    parser.add_argument("--from", dest="since", choices=STAGES, help="do this stage and the later ones anew")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to do")
    args = parser.parse_args()
    loop, file = Loop(args), Path(args.out) / "closed_loop.json"
    done: dict[str, Any] = json.loads(file.read_text())["stages"] if file.exists() else {}
    if args.since:
        done = {name: done[name] for name in STAGES[: STAGES.index(args.since)] if name in done}
        if "train" not in done:
            for name in POLICIES:
                shutil.rmtree(loop.out / name, ignore_errors=True)
    for name in STAGES[: STAGES.index(args.until) + 1]:
        if name in done:
            continue
        work: Callable[[], dict[str, Any]] = getattr(loop, name)
        began = time.monotonic()
        done[name] = work()
        loop.stages.say(f"{name}: {time.monotonic() - began:.0f} s")
        told = {"settings": vars(args), "machine": platform.processor() or platform.machine(), "stages": done}
        with atomic_path(file) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(table(done))


if __name__ == "__main__":
    try:
        main()
    except ToolkitError as error:
        sys.exit(f"closed_loop: {error}")
