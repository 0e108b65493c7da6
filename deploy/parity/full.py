"""Whole logs through the simulated joints, open loop: the commands and the first measured state alone go in.

`ksim parity LOG... --full --out DIR` writes DIR/MOTION.npz for each log, and DIR/full.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.errors import OptionError
from deploy.log.place import check_place
from deploy.log.recorder import read_head
from deploy.parity.report import EXIT_BAD
from deploy.sysid.calibrate import declared
from deploy.sysid.calibration import Calibration, load_calibration
from deploy.sysid.contacts import Contacts
from deploy.sysid.fit import FLOOR_RAD
from deploy.sysid.motion import Motion, SysidError, joints_of, read_motion
from deploy.sysid.simulate import LANES, Parameters, Simulator, check_base
from robots.errors import RobotLoadError
from robots.load import load_robot
from robots.model import build_model
from robots.spec import RobotSpec
from toolkit.files import atomic_path
from toolkit.words import count

if TYPE_CHECKING:
    from deploy.parity.command import ParityOptions

FORMAT = 1
# Of the published model where there is no calibration, which says its own [s].
TIMESTEP_S = 0.002
THREADS = 2
# Below this spread of a motion its correlation says nothing [rad].
SPREAD_MIN_RAD = 1e-3


@dataclass(frozen=True, kw_only=True)
class JointFigures:
    """How far a replayed joint is from the measured one.

    Attributes:
        rmse_rad: root of the mean square [rad]; None where the replay diverged.
        mae_rad: mean of the size [rad]; likewise.
        correlation: of the two positions; None where either hardly moves.
    """

    rmse_rad: float | None
    mae_rad: float | None
    correlation: float | None

    @classmethod
    def of(cls, simulated: np.ndarray, measured: np.ndarray) -> JointFigures:
        """Of one joint, (T,) each [rad]."""
        if not np.isfinite(simulated).all():
            return cls(rmse_rad=None, mae_rad=None, correlation=None)
        error = simulated - measured
        still = min(np.std(simulated), np.std(measured)) < SPREAD_MIN_RAD
        return cls(
            rmse_rad=float(np.sqrt(np.mean(error**2))),
            mae_rad=float(np.mean(np.abs(error))),
            correlation=None if still else float(np.corrcoef(simulated, measured)[0, 1]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Replayed:
    """One motion and what the models made of its commands.

    Attributes:
        motion: as recorded.
        published: by the robot's published figures, (T, joints) [rad].
        calibrated: by the calibration, likewise; None without one.
    """

    motion: Motion
    published: np.ndarray
    calibrated: np.ndarray | None = None

    @property
    def simulated(self) -> np.ndarray:
        """By the calibration, by the published figures without one, (T, joints) [rad]."""
        return self.published if self.calibrated is None else self.calibrated

    def figures(self, simulated: np.ndarray) -> dict[str, JointFigures]:
        """By joint, over the rows that count; joints that the log does not have are left out."""
        m, absent = self.motion, self.motion.absent
        return {
            name: JointFigures.of(simulated[m.use, j], m.position[m.use, j])
            for j, name in enumerate(m.names)
            if name not in absent
        }

    def ratios(self) -> dict[str, float | None]:
        """By joint: RMSE with the calibration over RMSE of the published model; None where one diverged."""
        if self.calibrated is None:
            return {}
        after, before = self.figures(self.calibrated), self.figures(self.published)
        return {name: _over(after[name].rmse_rad, before[name].rmse_rad) for name in after}


def _over(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after / max(before, FLOOR_RAD)


def _mean(values: Iterator[float | None] | Sequence[float | None]) -> float | None:
    """None where one of them is, or where there is none."""
    known = list(values)
    return None if not known or None in known else float(np.mean([v for v in known if v is not None]))


def _batches(motions: Sequence[Motion]) -> Iterator[list[Motion]]:
    """Motions that are simulated side by side: of like length."""
    longest_first = sorted(motions, key=lambda m: -m.time_s[-1])
    for first in range(0, len(longest_first), LANES):
        yield longest_first[first : first + LANES]


def replay_full(
    robot: str | Path, motions: Sequence[Motion], calibration: Calibration | None = None, *, held: bool = False
) -> list[Replayed]:
    """Replay whole motions by the published model, and by a calibration with its contacts.

    Args:
        robot: a built-in robot's name or a robot folder.
        motions: what to replay, each with a name of its own.
        calibration: what `ksim sysid` found; None for the published model alone.
        held: a floating base is fixed to the world.

    Raises:
        SysidError: the robot's base floats and is not held.
        CalibrationError: it is another robot's.
    """
    spec = load_robot(robot)
    fitted = None if calibration is None else calibration.parameters(spec)
    timestep_s = TIMESTEP_S if calibration is None else calibration.timestep_s

    def run(parameters: Parameters, contacts: Contacts | None, some: Sequence[Motion]) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for batch in _batches(some):
            simulator = Simulator(robot, batch, timestep_s=timestep_s, contacts=contacts, threads=THREADS, held=held)
            out |= {name: values[0] for name, values in simulator.run([parameters]).items()}
        return out

    published: dict[str, np.ndarray] = {}
    for gains, some in _by_gains(motions):
        # the gains that a log tells were in force are no matter of the model
        model = Parameters.of(spec)
        published |= run(model if gains is None else model.replace(kp=gains[0], kd=gains[1]), None, some)
    if calibration is None or fitted is None:
        return [Replayed(motion=m, published=published[m.name]) for m in motions]
    calibrated = run(fitted, calibration.contacts, motions)
    return [Replayed(motion=m, published=published[m.name], calibrated=calibrated[m.name]) for m in motions]


def _by_gains(motions: Sequence[Motion]) -> list[tuple[np.ndarray | None, list[Motion]]]:
    """The motions by the gains that their controllers were told."""
    groups: dict[bytes, tuple[np.ndarray | None, list[Motion]]] = {}
    for motion in motions:
        key = b"" if motion.gains is None else motion.gains.tobytes()
        groups.setdefault(key, (motion.gains, []))[1].append(motion)
    return list(groups.values())


def report_of(replayed: Sequence[Replayed]) -> dict[str, Any]:
    """The figures by motion and joint, plain JSON values."""
    motions: dict[str, Any] = {}
    for one in replayed:
        m, ratios = one.motion, one.ratios()
        published = one.figures(one.published)
        calibrated = {} if one.calibrated is None else one.figures(one.calibrated)
        motions[m.name] = {
            "npz": f"{m.name}.npz",
            "source": m.digest,
            "rows": len(m.time_s),
            "span_s": float(m.time_s[-1]),
            "left_out": float(np.mean(~m.use)),
            "one_clock": m.one_clock,
            "published_rmse_rad": _mean([f.rmse_rad for f in published.values()]),
            "calibrated_rmse_rad": _mean([f.rmse_rad for f in calibrated.values()]),
            "ratio": _mean(list(ratios.values())),
            "joints": {
                name: {
                    "published": asdict(figures),
                    "calibrated": asdict(calibrated[name]) if calibrated else None,
                    "ratio": ratios.get(name),
                }
                for name, figures in published.items()
            },
        }
    means = ("published_rmse_rad", "calibrated_rmse_rad", "ratio")
    return {"motions": motions} | {key: _mean([m[key] for m in motions.values()]) for key in means}


def _cell(value: float | None, digits: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{digits}}{unit}"


def _row(name: str, span: str, figures: dict[str, Any], more: str) -> str:
    published, calibrated = (_cell(figures[f"{what}_rmse_rad"], ".4f") for what in ("published", "calibrated"))
    return f"{name:<28.28} {span:>8} {published:>10} {calibrated:>10} {_cell(figures['ratio'], '.3f'):>7}  {more}"


def lines(report: dict[str, Any]) -> list[str]:
    """The table for a terminal: RMSE as the mean over the joints."""
    out = [f"{'motion':<28} {'span':>8} {'published':>10} {'calibrated':>10} {'ratio':>7}  largest error"]
    for name, motion in report["motions"].items():
        which = "published" if motion["calibrated_rmse_rad"] is None else "calibrated"
        errors = {joint: f[which]["rmse_rad"] for joint, f in motion["joints"].items() if f[which]}
        lost = [joint for joint, error in errors.items() if error is None]
        worst = max((j for j in errors if j not in lost), key=lambda j: errors[j], default="")
        more = f"diverged: {', '.join(lost)[:60]}" if lost else f"{worst} {errors[worst]:.4f} rad"
        out.append(_row(name, f"{motion['span_s']:.1f} s", motion, more))
    out.append(_row(f"mean of {len(report['motions'])}", "", report, "RMSE [rad] is the mean over the joints"))
    return out


def write_npz(path: Path, one: Replayed) -> None:
    """One motion: time_s (T,), measured, simulated, published and target (T, joints), use (T,), names (joints,)."""
    m = one.motion
    arrays = {"time_s": m.time_s, "measured": m.position, "simulated": one.simulated, "published": one.published}
    arrays |= {"target": m.target, "use": m.use, "names": np.array(m.names, dtype=np.str_)}
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _robot(args: ParityOptions, calibration: Calibration | None) -> tuple[str, RobotSpec]:
    """The robot that is named, else the calibration's, else the first log's."""
    name = args.robot or (calibration.robot if calibration else "")
    if not name:
        first = Path(args.log[0])
        if first.is_dir():
            raise OptionError(f"{first}: a folder does not say its robot; expected it with --robot; for example so101")
        name = read_head(first)[1].robot.name
    try:
        return name, load_robot(name)
    except RobotLoadError as error:
        raise OptionError(f"{error}{'' if args.robot else '; name its folder with --robot'}") from error


def _motions(args: ParityOptions, spec: RobotSpec) -> list[Motion]:
    found: dict[str, tuple[str, Motion]] = {}
    for log in args.log:
        path = Path(log)
        motion = read_motion(path if path.name not in ("", "..") else path.resolve(), spec)
        if motion.name in found:
            raise SysidError(
                f"{found[motion.name][0]} and {log}: both are named {motion.name}; expected another name for each, "
                f"which --out's files get; rename one"
            )
        found[motion.name] = log, motion
    return [motion for _, motion in found.values()]


def full(args: ParityOptions) -> int:
    """`ksim parity --full`."""
    if args.out is None or args.out.endswith(".html"):
        raise OptionError(f"--out: got {args.out or 'nothing'}, expected the folder for what --full writes; name one")
    if args.reality:
        raise OptionError("--reality: --full does not take it; expected --calibration, or neither; leave it out")
    calibration = load_calibration(args.calibration) if args.calibration else None
    robot, spec = _robot(args, calibration)
    held = args.held or (calibration is not None and calibration.held)
    if calibration is not None:
        calibration.parameters(spec)  # another robot's is refused before the logs are read
        if calibration.model != spec.source:
            print(f"ksim parity: warning: {args.calibration} was made with another {spec.name} model", file=sys.stderr)
    check_place(Path(args.out) / "full.json", "--out", "full.json")
    for log in args.log:
        if Path(log).suffix == ".mcap":
            joints_of(Path(log), spec)
    check_base(build_model(robot, TIMESTEP_S, held=held))
    motions = declared(_motions(args, spec), calibration.contacts if calibration else Contacts())
    seconds = sum(m.time_s[-1] for m in motions)
    print(f"ksim parity: {count(len(motions), 'motion')}, {seconds:.0f} s, of {spec.name}", file=sys.stderr, flush=True)
    replayed = replay_full(robot, motions, calibration, held=held)
    out = Path(args.out)
    about = {
        "format": FORMAT,
        "robot": spec.name,
        "model": spec.source,
        "calibration": args.calibration and Path(args.calibration).name,
        "calibration_sha256": args.calibration and hashlib.sha256(Path(args.calibration).read_bytes()).hexdigest(),
        "timestep_s": calibration.timestep_s if calibration else TIMESTEP_S,
        "held": held,
    }
    report = about | report_of(replayed)
    for one in replayed:
        write_npz(out / f"{one.motion.name}.npz", one)
    with atomic_path(out / "full.json") as part:
        part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(json.dumps(report, allow_nan=False) if args.json else "\n".join(lines(report)))
    print(f"wrote {out / 'full.json'} and {count(len(replayed), 'motion')} beside it", file=sys.stderr)
    # a calibration that is no better than the published figures, or whose replay diverged, is one not to use
    worse = calibration is not None and (report["ratio"] is None or report["ratio"] >= 1.0)
    return EXIT_BAD if worse and not args.exit_zero else 0
