"""calibration.yaml: what a fit found, how sure it is, of which robot and logs, and how far it takes the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from deploy.errors import DeployError
from deploy.sysid.contacts import Contacts
from deploy.sysid.fit import Fit, Problem, Score
from deploy.sysid.intervals import Intervals
from deploy.sysid.kinds import GIVE_M_N
from deploy.sysid.motion import Motion
from deploy.sysid.simulate import Parameters, Simulator, plane_of
from robots.spec import RobotSpec
from toolkit.errors import SettingsError
from toolkit.files import atomic_path
from toolkit.settings import Settings, load

FORMAT = 1
# No figure of a joint is greater, in SI; a description may have this for "no limit".
GREATEST = 1e12


class CalibrationError(DeployError, SettingsError):
    """A calibration that cannot be read, or that is another robot's."""


@dataclass(frozen=True, kw_only=True)
class _Settings(Settings):
    error: ClassVar[type[SettingsError]] = CalibrationError
    noun: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class Estimate(_Settings):
    """A value with its 95 % interval.

    Attributes:
        value: the value in SI.
        low, high: ends of the interval; None where it was not fitted.
        known: fitted, and the motions say something of it. Do not build on one that is not.
        sensitivity: what a value 10 % greater (an offset 1 mrad, a delay 1 ms, a height 1 mm) changes in the motions,
            over the error that is left, RMS.
    """

    value: float
    low: float | None = None
    high: float | None = None
    known: bool = False
    sensitivity: float | None = None


@dataclass(frozen=True, kw_only=True)
class JointCalibration(_Settings):
    """One joint, in the terms of robots/motor.py.

    Attributes:
        kp: stiffness as the servo has it [N m/rad].
        kd: its damping [N m s/rad]; viscous friction is in it where `damping` was not fitted.
        torque_limit: greatest torque [N m].
        velocity_max: speed at which it has none [rad/s].
        friction: Coulomb friction [N m].
        damping: viscous friction [N m s/rad].
        armature: rotor inertia at the joint [kg m^2].
        stiction: breakaway torque above the friction [N m].
        play: full width of the gap [rad].
        compliance: of the spring, 1 / stiffness [rad/(N m)].
        offset: measured less true position [rad].
        load_friction: friction that is more by this share of the controller's torque.
        mass: factor on the mass and inertia of the link that the joint moves.
    """

    kp: Estimate
    kd: Estimate
    torque_limit: Estimate
    velocity_max: Estimate
    friction: Estimate
    damping: Estimate
    armature: Estimate
    stiction: Estimate
    play: Estimate
    compliance: Estimate
    offset: Estimate
    load_friction: Estimate = Estimate(value=0.0)
    mass: Estimate = Estimate(value=1.0)

    def check(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name).value, field.name
            if name == "mass":
                self.require(0.09 <= value <= 11.0, f"{name}.value", value, "a factor from 0.1 to 10")
            elif name == "load_friction":
                self.require(0.0 <= value < 1.0, f"{name}.value", value, "a share from 0 to below 1")
            elif name == "offset":
                self.require(abs(value) <= math.pi, f"{name}.value", value, "-3.14159 to 3.14159 radians")
            else:
                self.require(0.0 <= value <= GREATEST, f"{name}.value", value, f"0 to {GREATEST:g}")


@dataclass(frozen=True, kw_only=True)
class MotionScore(_Settings):
    """Of one motion.

    Attributes:
        source: SHA-256 of its files.
        ratio: mean over the joints of the fitted model's RMSE over the published one's.
        published_rad: RMSE of the published model by joint [rad].
        fitted_rad: of the fitted one [rad].
        lag_rad: of a fitted lag with play, without dynamics [rad].
        touching: share of its rows in which the arm touches what is declared.
        left_out: share of its rows that were not fitted, or for an unseen one did not count.
    """

    source: str
    ratio: float
    published_rad: dict[str, float]
    fitted_rad: dict[str, float]
    lag_rad: dict[str, float]
    touching: float = 0.0
    left_out: float = 0.0

    @property
    def lag_ratio(self) -> float:
        """As `ratio`, of the lag."""
        return float(np.mean([v / max(self.published_rad[k], 1e-4) for k, v in self.lag_rad.items()]))


@dataclass(frozen=True, kw_only=True)
class Touching(_Settings):
    """A contact that the log shows and nobody declared.

    Attributes:
        motion: where.
        what: "plane", or the joint at its stop.
        level: height of the plane [m], or the joint's angle [rad].
        share: of the motion's rows.
        left_out: these rows were not fitted.
        geoms: of the robot, that are at the plane by name.
    """

    motion: str
    what: str
    level: float
    share: float
    left_out: bool
    geoms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration(_Settings):
    """The whole file.

    Attributes:
        format: of the file.
        robot: the robot's name.
        model: digest of its folder, as `RobotSpec.source`.
        timestep_s: physics step of the fit [s]; friction that holds gives way by load x step^2 / armature.
        fitted: the kinds of parameter that were.
        joints: by name.
        delay_s: from the stamp of a command to its effect, less that to the reading of the state [s].
        one_clock: commands and states of a log bear one stamp: the delay is not a transport delay.
        converged: the search came to its end; False where its iterations were used up before.
        held: the base, which floats in the model, was fixed to the world.
        contacts: what was declared; its plane has what was found.
        plane_m: that height.
        touching: contacts that nobody declared.
        seen: the motions that were fitted.
        unseen: the motions that were not.
    """

    format: int = FORMAT
    robot: str
    model: str
    timestep_s: float
    fitted: tuple[str, ...]
    joints: dict[str, JointCalibration]
    delay_s: Estimate
    one_clock: bool
    converged: bool = True
    held: bool = False
    contacts: Contacts
    plane_m: Estimate
    touching: tuple[Touching, ...] = ()
    seen: dict[str, MotionScore]
    unseen: dict[str, MotionScore]

    def check(self) -> None:
        self.require(self.format == FORMAT, "format", self.format, f"{FORMAT}; make it again with ksim sysid")
        self.require(1e-5 <= self.timestep_s <= 0.1, "timestep_s", self.timestep_s, "1e-05 to 0.1 seconds")

    @property
    def ratio(self) -> float:
        """Mean over the unseen motions, over the seen ones where there are none."""
        return float(np.mean([m.ratio for m in (self.unseen or self.seen).values()]))

    def begin(self, robot: RobotSpec, contacts: Contacts) -> Parameters:
        """As `parameters`, where another fit begins: at the plane that is declared now, and its height if it was found.

        Raises:
            CalibrationError: it is of other joints.
        """
        p, plane = self.parameters(robot), contacts.plane
        if plane is None:
            return p
        found = plane.fit and self.contacts.plane is not None
        return p.replace(**plane_of(plane) | ({"plane_m": p.plane_m} if found else {}))

    def declaration(self) -> list[str]:
        """Lines of YAML that declare the plane that was found; none where none was."""
        planes = [t for t in self.touching if t.what == "plane"]
        if not planes:
            return []
        geoms = dict.fromkeys(name for t in planes for name in t.geoms)
        height = np.average([t.level for t in planes], weights=[t.share for t in planes])
        return ["plane:", f"  height_m: {height:.3f}", f"  geoms: [{', '.join(geoms)}]", f"  give_m_n: {GIVE_M_N}"]

    def at_step(self, timestep_s: float) -> Calibration:
        """The same robot for a simulation with another physics step [s].

        An explicit step of h takes kd h / 2 of a joint's inertia away, and acts h / 2 early: I (q+ - 2 q + q-) / h^2 =
        kp (target - q) - kd (q - q-) / h. What was fitted made up for that at its own step.
        """
        more = 0.5 * (timestep_s - self.timestep_s)

        def moved(estimate: Estimate, by: float, least: float) -> Estimate:
            if estimate.low is None or estimate.high is None:  # not fitted
                return estimate
            ends = (max(end + by, least) for end in (estimate.value, estimate.low, estimate.high))
            value, low, high = ends
            return dataclasses.replace(estimate, value=value, low=low, high=high)

        joints = {
            name: dataclasses.replace(j, armature=moved(j.armature, j.kd.value * more, 0.1 * j.armature.value))
            for name, j in self.joints.items()
        }
        return dataclasses.replace(
            self, timestep_s=timestep_s, joints=joints, delay_s=moved(self.delay_s, more, -math.inf)
        )

    def parameters(self, robot: RobotSpec) -> Parameters:
        """What to simulate.

        Raises:
            CalibrationError: it is of other joints.
        """
        missing = [name for name in robot.joint_names if name not in self.joints]
        if missing:
            raise CalibrationError(
                f"no joint {missing[0]!r} of robot {robot.name}; expected a calibration of it (it is {self.robot}'s)"
            )
        rows = [self.joints[name] for name in robot.joint_names]
        columns = {f.name: np.array([getattr(row, f.name).value for row in rows]) for f in fields(JointCalibration)}
        plane: dict[str, Any] = {"plane_m": self.plane_m.value}
        plane |= {} if self.contacts.plane is None else plane_of(self.contacts.plane)
        return Parameters(**columns, delay_s=self.delay_s.value, **plane)


def joints_of(robot: RobotSpec, problem: Problem, fit: Fit, sure: Intervals) -> dict[str, JointCalibration]:
    """The table of the joints."""

    def estimate(what: str, j: int) -> Estimate:
        return _estimate(what, j, float(getattr(fit.parameters, what)[j]), problem, sure)

    return {
        name: JointCalibration(**{f.name: estimate(f.name, j) for f in fields(JointCalibration)})
        for j, name in enumerate(robot.joint_names)
    }


def shared(what: str, problem: Problem, fit: Fit, sure: Intervals) -> Estimate:
    """A parameter that all joints share."""
    return _estimate(what, 0, float(getattr(fit.parameters, what)), problem, sure)


def _estimate(what: str, j: int, value: float, problem: Problem, sure: Intervals) -> Estimate:
    if what not in problem.kinds:
        return Estimate(value=value)
    low, high, known, felt = (table[what][j] for table in (sure.low, sure.high, sure.known, sure.sensitivity))
    return Estimate(value=value, low=float(low), high=float(high), known=bool(known), sensitivity=float(felt))


def scores_of(
    names: Sequence[str], score: Score, lag: dict[str, np.ndarray], digests: dict[str, str], **more: dict[str, float]
) -> dict[str, MotionScore]:
    """The table of some motions; `more` is touching and left_out, by motion."""

    def by_joint(values: np.ndarray) -> dict[str, float]:
        return {name: float(v) for name, v in zip(names, values, strict=True) if np.isfinite(v)}

    return {
        motion: MotionScore(
            source=digests[motion],
            ratio=ratio,
            published_rad=by_joint(score.published_rad[motion]),
            fitted_rad=by_joint(score.rmse_rad[motion]),
            lag_rad=by_joint(lag[motion]),
            **{what: values.get(motion, 0.0) for what, values in more.items()},
        )
        for motion, ratio in score.ratios.items()
    }


def replay(calibration: Calibration, robot: str | Path, motions: Sequence[Motion]) -> dict[str, np.ndarray]:
    """Full open-loop replay of motions by the calibrated model, by motion: (T, joints) [rad]."""
    simulator = Simulator(
        robot, motions, timestep_s=calibration.timestep_s, contacts=calibration.contacts, held=calibration.held
    )
    shown = simulator.run([calibration.parameters(simulator.spec)])
    return {name: values[0] for name, values in shown.items()}


def write_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write the file; every number at full precision."""
    head = "# what ksim sysid found; values in SI, docs/sysid.md says what each is\n"
    text = yaml.safe_dump(calibration.to_dict(), sort_keys=False, width=120, allow_unicode=True)
    with atomic_path(path) as part:
        part.write_text(head + text, encoding="utf-8")


def load_calibration(path: str | Path) -> Calibration:
    """Read the file.

    Raises:
        CalibrationError: it is missing, or not a calibration.
    """
    return load(Calibration, path, expected="a calibration that ksim sysid wrote")
