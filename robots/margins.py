"""Margins of a policy: how late its readings and its commands may come, in simulation, before it falls too often.

One thing is made worse at a time, step by step; everything else stays as `Margins` says. A margin is a value that was
run, never one in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from robots.errors import SpecError
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings

# A policy stands its ground where at least this share of the episodes lasts to the end.
STANDS = 0.9
# A pull that is still growing in the last second, by more than this share and this much [rad], winds up.
GROWTH, GROWTH_RAD = 0.1, 0.01
MAX_RUNGS = 100

Radians = Annotated[float, Bound(0, 1e3, "radians")]
Share = Annotated[float, Bound(0, 1, "a share")]


@dataclass(frozen=True, kw_only=True)
class _Value(Settings):
    """Settings that a bundle carries."""

    error: ClassVar[type[SettingsError]] = SpecError
    noun: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class Rung(_Value):
    """One value that was run.

    Attributes:
        value: in the unit of the ladder.
        survived: episodes that lasted to the end.
        episodes: of how many.
    """

    value: Annotated[float, Bound(0, 1e4, "a number")]
    survived: Annotated[int, Bound(0, 1_000_000, "episodes")]
    episodes: Annotated[int, Bound(1, 1_000_000, "episodes")]

    def check(self) -> None:
        self.require(self.survived <= self.episodes, "survived", self.survived, f"at most {self.episodes}")

    @property
    def survival(self) -> float:
        """Share of the episodes that lasted."""
        return self.survived / self.episodes

    @property
    def stands(self) -> bool:
        """The share is at least STANDS."""
        return self.survival >= STANDS


@dataclass(frozen=True, kw_only=True)
class Ladder(_Value):
    """One quantity, made worse rung by rung.

    Attributes:
        rungs: the values in rising order.
    """

    rungs: tuple[Rung, ...]

    def check(self) -> None:
        values = [rung.value for rung in self.rungs]
        self.require(0 < len(values) <= MAX_RUNGS, "rungs", len(values), f"1 to {MAX_RUNGS}")
        self.require(values == sorted(set(values)), "rungs", values, "rising values")

    @property
    def margin(self) -> float | None:
        """The greatest value up to which every rung stands; None where the first falls already."""
        found = None
        for rung in self.rungs:
            if not rung.stands:
                break
            found = rung.value
        return found

    @property
    def at_least(self) -> bool:
        """Every rung stands: the margin may be greater."""
        return all(rung.stands for rung in self.rungs)


@dataclass(frozen=True, kw_only=True)
class Answer(_Value):
    """What a policy asks of joints that move only a share of what it asks; the robot hangs upright and still.

    The joints start at home. At each tick they are then measured at home + share x (target - home). The pull is
    |target - measured| of the same tick, greatest over the joints: with kp it is the torque that the joint is held by.

    Attributes:
        share: of the way from home to the target that the joints move.
        earlier_rad: greatest pull before the last second [rad].
        last_rad: greatest pull in the last second [rad].
        joint: whose pull is the greatest of all.
        at_limit: share of the targets of the last second that are at an end of their range.
    """

    share: Share
    earlier_rad: Radians
    last_rad: Radians
    joint: str
    at_limit: Share

    @property
    def pull_rad(self) -> float:
        """Greatest pull of all [rad]."""
        return max(self.earlier_rad, self.last_rad)

    @property
    def winds_up(self) -> bool:
        """The pull still grows when it is no longer looked at."""
        return self.last_rad > (1.0 + GROWTH) * self.earlier_rad + GROWTH_RAD


@dataclass(frozen=True, kw_only=True)
class Margins(_Value):
    """What was measured, and in what. A ladder is None where the task has no such channel, or no falls.

    The robot is the nominal one, without pushes. Starts, commands and sensor noise are those of the task. Every reading
    is new at each tick. The channels that a ladder leaves alone have the latencies of `others_s`, without jitter or
    loss.

    Attributes:
        imu_age_s: age of the IMU's values when the policy reads them [s].
        joint_age_s: age of the joints' angles and velocities [s].
        action_latency_s: from the policy's step to the motors [s].
        held_ticks: ticks in a row whose command does not come; the motors hold the last one that came.
        answers: to joints that move a share of what is asked.
        engine: what stepped the physics.
        seed: of the episodes.
        episode_s: their length [s].
        others_s: latency of each channel where it is left alone, the middle of its range in training [s].
        answer_s: how long the answers were looked at [s].
    """

    imu_age_s: Ladder | None = None
    joint_age_s: Ladder | None = None
    action_latency_s: Ladder | None = None
    held_ticks: Ladder | None = None
    answers: tuple[Answer, ...] = ()
    engine: str = "mujoco"
    seed: Annotated[int, Bound(0, 2**32 - 1, "a seed")] = 0
    episode_s: Annotated[float, Bound(0, 3600, "seconds")] = 0.0
    others_s: dict[str, Annotated[float, Bound(0, 10, "seconds")]] = field(default_factory=dict)
    answer_s: Annotated[float, Bound(0, 3600, "seconds")] = 0.0

    def check(self) -> None:
        self.require(len(self.answers) <= MAX_RUNGS, "answers", len(self.answers), f"at most {MAX_RUNGS}")

    @property
    def ladders(self) -> dict[str, Ladder]:
        """Those that were run, by their names here."""
        names = ("imu_age_s", "joint_age_s", "action_latency_s", "held_ticks")
        return {name: ladder for name in names if (ladder := getattr(self, name)) is not None}
