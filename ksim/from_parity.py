"""From a report of `ksim parity` to a task: ranges grow until they hold what was measured. None gets narrower."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.parity.report import Cause
from ksim.channels import Channel
from ksim.config import Config
from ksim.draws import Randomization
from ksim.errors import ConfigError
from ksim.joint_randomization import (
    ComplianceRandomization,
    JointFrictionRandomization,
    JointOffsetRandomization,
    KdRandomization,
    KpRandomization,
    PlayRandomization,
    StictionRandomization,
)
from ksim.measured import MeasuredRandomization, range_at
from ksim.noise import GaussianNoise, UniformNoise
from ksim.randomization import PayloadRandomization
from robots.inputs import GRAVITY_INPUT, GYROSCOPE, JOINT_ANGLES, JOINT_VELOCITIES
from robots.load import load_robot
from robots.rotation import GRAVITY_M_S2
from toolkit.errors import SettingsError

# What a log shows once, another shows a little more of: ranges end this share beyond it.
BEYOND = 0.1
# Faults of wiring or of software: they are mended, a policy does not train to bear them.
TO_MEND = (
    *(Cause.JOINTS_SWAPPED, Cause.JOINT_INVERTED, Cause.UNIT, Cause.IMU_TURNED),
    *(Cause.FROZEN, Cause.STALE_CARRY, Cause.OTHER_POLICY),
)
# What a report calls the simulation that a log was compared with, where no --reality was given.
NOMINAL = "nominal"
# By figure of the sensing layer: the input whose noise it is, and its unit in that of the input.
_NOISE = {
    "joint_position_noise_rad": (JOINT_ANGLES, 1.0),
    "joint_velocity_noise_rad_s": (JOINT_VELOCITIES, 1.0),
    "gyro_noise_rad_s": (GYROSCOPE, 1.0),
    "orientation_noise_rad": (GRAVITY_INPUT, GRAVITY_M_S2),
}
_RATES = {"joints_new_hz": "joints", "orientation_new_hz": "imu", "gyro_new_hz": "imu"}
_LOST = {"commands_lost_share": "action", "stale_share": "joints"}
# A sensor with fewer new values a second than this is broken, and no policy trains to bear it.
SLOWEST_HZ = 1.0
# Below this share of a rate a sensor is slow, and not a tick late now and then.
_SLOW = 0.9


@dataclass(frozen=True, kw_only=True)
class Widened:
    """A task whose ranges hold what a report measured.

    Attributes:
        config: the task.
        changes: what became wider, a line each; empty where all was held already.
        unheld: suspects that no term of the task varies, a line each.
    """

    config: Config
    changes: tuple[str, ...] = ()
    unheld: tuple[str, ...] = ()


def read_report(path: str | Path, robot: str, calibration: str | Path | None = None) -> dict[str, Any]:
    """A report.json of `ksim parity`, of one log or of several, of a robot.

    Args:
        path: the file.
        robot: whose, by name or folder.
        calibration: the file that the logs must have been compared with; None for the nominal robot.

    Raises:
        ConfigError: it is missing, no such report, another robot's, or compares with another simulation.
    """
    what = "report.json of ksim parity"
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; expected a {what}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: it is not JSON; expected a {what}") from error
    whole = isinstance(report, dict) and "robot" in report
    if not whole or not all(isinstance(report.get(key), list) for key in ("layers", "suspects")):
        raise ConfigError(f"{path}: it has no layers and suspects of a robot; expected a {what}")
    name = load_robot(robot).name
    if report["robot"] != name:
        raise ConfigError(f"{path}: it is of robot {report['robot']}, expected {name}; name that robot's own")
    wanted = None if calibration is None else hashlib.sha256(Path(calibration).read_bytes()).hexdigest()
    if report.get("simulation_sha256") != wanted or (wanted is None and report.get("simulation") != NOMINAL):
        on = f"{calibration}" if calibration else "the robot as described"
        again = f"with --reality {calibration}" if calibration else "without --reality"
        raise ConfigError(
            f"{path}: it compares with {report.get('simulation')!r}, not with {on}, which is trained on; run ksim "
            f"parity again {again}"
        )
    return report


class _Widening:
    """The task while it grows."""

    def __init__(self, config: Config, path: str) -> None:
        self.path, self.config = path, config
        self.changes: list[str] = []
        self.unheld: list[str] = []
        self.terms, self.channels = dict(config.randomizations), dict(config.channels)
        self.observations = dict(config.observations)

    def done(self) -> Widened:
        config = replace(self.config, randomizations=self.terms, channels=self.channels, observations=self.observations)
        return Widened(config=config, changes=tuple(self.changes), unheld=tuple(self.unheld))

    def say(self, what: str, before: Any, after: Any) -> None:
        self.changes.append(f"{what}: {_told(before)} becomes {_told(after)}")

    # the ways of packets

    def channel(self, name: str, **grown: Any) -> bool:
        """Set fields of a channel; whether the task has it."""
        channel = self.channels.get(name)
        if not isinstance(channel, Channel):
            return False
        for field, value in grown.items():
            before = getattr(channel, field)
            if before != value:
                self.say(f"channels.{name}.{field}", before, value)
        self.channels[name] = replace(channel, **grown)
        return True

    def later(self, name: str, seconds: float) -> bool:
        """A latency that is longer, or shorter, by this than the middle of what the task has."""
        channel = self.channels.get(name)
        if not isinstance(channel, Channel):
            return False
        low, high = channel.latency_s
        wanted = max(0.5 * (low + high) + seconds, 0.0)
        return self.channel(name, latency_s=_holding((low, high), wanted, beyond=BEYOND * abs(seconds)))

    def rate(self, name: str, hertz: float) -> bool:
        """New values as seldom as this."""
        channel = self.channels.get(name)
        if not isinstance(channel, Channel):
            return False
        tick_hz = 1.0 / self.config.physics.control_period_s
        low, high = channel.rate_hz if channel.rate_hz[0] > 0 else (tick_hz, tick_hz)
        if hertz >= _SLOW * min(low, tick_hz):
            return True
        if hertz < SLOWEST_HZ:
            raise ConfigError(
                f"{self.path}: the report has {hertz:.3g} new values a second on channel {name}, expected "
                f"{SLOWEST_HZ:g} or more: that is mended, not trained for; mend it, record again and compare again"
            )
        return self.channel(name, rate_hz=((1.0 - BEYOND) * hertz, max(high, tick_hz)))

    def lost(self, name: str, share: float) -> None:
        """Packets that do not arrive."""
        channel = self.channels.get(name)
        if isinstance(channel, Channel) and share > channel.loss:
            self.channel(name, loss=min(share, 0.9))

    def noise(self, name: str, std: float) -> None:
        """White noise of at least this; an input whose noise is of another kind is left alone."""
        term = self.observations.get(name)
        noise = getattr(term, "noise", None)
        if isinstance(noise, UniformNoise) and noise.width < math.sqrt(3.0) * std:
            more: Any = replace(noise, width=math.sqrt(3.0) * std)
            before, after = noise.width, more.width
        elif isinstance(noise, GaussianNoise) and noise.std < std:
            more = replace(noise, std=std)
            before, after = noise.std, std
        else:
            return
        self.say(f"observations.{name}.noise", before, after)
        self.observations[name] = replace(term, noise=more)  # type: ignore[type-var]

    # what differs from robot to robot

    def term(
        self, kind: type[Randomization], field: str, value: float, neutral: float, places: tuple[str, ...] = ()
    ) -> bool:
        """Grow the range of the task's terms of a kind until it holds a value; whether there is one.

        With a calibration the ranges of the places alone grow; of all joints where there are none, or no calibration.
        """
        found = False
        at_places = bool(places) and self.config.calibration is not None
        for name, term in self.terms.items():
            measured = isinstance(term, MeasuredRandomization)
            own, spans = (term.of, dict(term.spans)) if measured else (term, {})
            if type(own) is not kind:
                continue
            found = True
            # a spring is drawn as what it gives way [rad/(N m)]
            more = 1.0 / value if isinstance(own, ComplianceRandomization) else value
            for joint in places if at_places else tuple(spans):
                span = range_at(term, joint)
                grown = _holding(span, more, beyond=BEYOND * abs(more - neutral))
                if grown != span:
                    self.say(f"randomizations.{name} of {joint}", span, grown)
                    spans[joint] = grown
            before = getattr(own, field)
            if at_places:
                after: Any = before
            elif isinstance(before, tuple):
                after = _holding(before, value, beyond=BEYOND * abs(value - neutral))
            else:
                after = max(before, (1.0 + BEYOND) * abs(value))
            if after != before:
                self.say(f"randomizations.{name}.{field}", before, after)
                own = replace(own, **{field: after})
            self.terms[name] = MeasuredRandomization(of=own, spans=spans, scale=term.scale) if spans else own
        return found

    def friction(self, added_nm: float, places: tuple[str, ...]) -> bool:
        """Friction that is more by this at some joints: as stiction, else as a factor on the friction there is."""
        if self.term(StictionRandomization, "stiction_nm", added_nm, 0.0, places):
            return True
        own = [j.friction_nm for j in load_robot(self.config.robot).joints if not places or j.name in places]
        least = min((f for f in own if f > 0), default=0.0)
        return least > 0 and self.term(JointFrictionRandomization, "factor", 1.0 + added_nm / least, 1.0, places)

    def suspect(self, told: Mapping[str, Any]) -> None:
        """Hold what a suspect says.

        Raises:
            ConfigError: it is a fault to be mended, or no suspect.
        """
        try:
            cause, value, unit = Cause(told["cause"]), told["value"], told["unit"]
            places = tuple(str(place) for place in told["places"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.path}: {repr(told)[:80]} is no suspect of a report of this version; make it again"
            ) from error
        where = f" of {', '.join(places)}" if places else ""
        if cause in TO_MEND:
            raise ConfigError(
                f"{self.path}: the report suspects {cause.value}{where}: that is mended, not trained for; mend it, "
                "record again and compare again"
            )
        size = f"{value:.3g} {unit}".strip() if _is_number(value) else "of no size"
        if not _is_number(value) or not self._hold(cause, float(value), str(unit), places):
            self.unheld.append(f"{cause.value}{where}, {size}")

    def _hold(self, cause: Cause, value: float, unit: str, places: tuple[str, ...]) -> bool:
        match cause:
            case Cause.GAINS:
                damping = self.term(KdRandomization, "factor", value, 1.0, places)
                return self.term(KpRandomization, "factor", value, 1.0, places) and damping
            case Cause.MASS:
                return self.term(PayloadRandomization, "mass_kg", value, 0.0)
            case Cause.STICKY:
                return self.friction(value, places)
            case Cause.LOOSE if unit == "rad":
                return self.term(PlayRandomization, "play_rad", value, 0.0, places)
            case Cause.LOOSE:
                return value > 0 and self.term(ComplianceRandomization, "stiffness_nm_rad", value, 0.0, places)
            case Cause.ZERO_OFFSET:
                return self.term(JointOffsetRandomization, "width_rad", value, 0.0, places)
            case Cause.DELAY:
                return self.later("action", value)
            case Cause.IMU_AGE:
                return self.later("imu", value)
            case Cause.IMU_RATE:
                return self.rate("imu", value)
            case _:
                return False


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_told(v) for v in value) + "]"
    return f"{value:.3g}"


def _holding(span: tuple[float, float], value: float, beyond: float) -> tuple[float, float]:
    """The range, grown until it holds a value and a little beyond; a range that begins at 0 or above goes on so."""
    low, high = span
    if low <= value <= high:
        return span
    grown = (min(low, value - beyond), max(high, value + beyond))
    return (max(grown[0], 0.0), grown[1]) if low >= 0 and value >= 0 else grown


def from_parity(config: Config, path: str | Path, calibration: str | Path | None = None) -> Widened:
    """A task whose ranges hold what a log showed.

    Noise, rate and loss come from the layers of sensing and of the action path, delay, gains, mass, friction, play and
    zeros from the suspects. A range ends 10 % beyond what was measured.

    Args:
        config: the task.
        path: report.json of `ksim parity`.
        calibration: the file that is trained on, and that its logs must have been compared with; None for none.

    Raises:
        ConfigError: it is no such report, another robot's, of another simulation, or suspects what is to be mended.
    """
    report, grown = read_report(path, config.robot, calibration), _Widening(config, str(path))
    try:
        figures = {f["key"]: f["value"] for layer in report["layers"] for f in layer["figures"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: its layers have no figures as ksim parity writes them; make it again") from error
    try:
        for suspect in report["suspects"]:
            grown.suspect(suspect)
        for key, (name, unit) in _NOISE.items():
            if _is_number(figures.get(key)):
                grown.noise(name, float(figures[key]) * unit)
        for key, name in _RATES.items():
            if _is_number(figures.get(key)) and figures[key] > 0:
                grown.rate(name, float(figures[key]))
        for key, name in _LOST.items():
            if _is_number(figures.get(key)):
                grown.lost(name, float(figures[key]))
    except SettingsError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ConfigError(f"{path}: what it measured fits no range: {error}; look at the log that it is of") from error
    return grown.done()
