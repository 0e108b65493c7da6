"""What excites a robot's joints: chirps, multisines, steps, slow sweeps both ways, poses that are held. Numpy alone.

A signal is a table of joint targets, one row a control period. It begins and ends at home, stays within the joints'
limits, and but for steps moves no target faster than a share of the joint's no-load speed. Where it is quick it also
stays so near that the motor's torque limit is not met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploy.control.smooth import smooth
from deploy.errors import OptionError
from robots.spec import RobotSpec
from toolkit.settings import nearest

Kind = Literal["chirp", "multisine", "steps", "sweeps", "hold"]
AtOnce = Literal["one", "side", "all"]

# Distance to the joints' limits [rad].
MARGIN_RAD = 0.05
# Shares of the no-load speed, and of the torque limit over kp, that a quick signal may take.
SPEED_SHARE, TORQUE_SHARE = 0.2, 0.4
# Of chirp and multisine [Hz].
LOW_HZ, HIGH_HZ = 0.1, 10.0
# A smooth move's greatest speed over its mean.
PEAK = 1.875
# From home to the middle of a signal, and back, at least; also from one pose to the next [s].
LEAD_S = 1.0
# Over which a signal that does not begin at its middle grows and goes [s].
TAPER_S = 0.5
# Sines of one joint; how often their phases are turned, and the share of the peak at which they are clipped for it.
TONES, TURNS, CLIPPED = 16, 100, 0.8
# A pose is held for about so long [s].
POSE_S = 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Reach:
    """How far each joint may go; arrays are (joints,).

    Attributes:
        home: where it begins and ends [rad].
        middle: what it moves about: home, or as near to it as the limits leave room for [rad].
        slow: how far a slow signal goes [rad].
        quick: how far a quick one goes [rad].
        speed: of the target [rad/s].
    """

    home: np.ndarray
    middle: np.ndarray
    slow: np.ndarray
    quick: np.ndarray
    speed: np.ndarray

    @classmethod
    def of(cls, robot: RobotSpec, amplitude_rad: float) -> Reach:
        """Of a robot, at most `amplitude_rad`."""
        columns = ("home_rad", "lower_rad", "upper_rad", "kp", "torque_limit_nm", "velocity_max_rad_s")
        home, lower, upper, kp, torque, speed = (np.asarray(robot.column(name)) for name in columns)
        slow = np.clip(amplitude_rad, 0.0, np.maximum(0.5 * (upper - lower) - MARGIN_RAD, 0.0))
        middle = np.clip(
            home, np.minimum(lower + MARGIN_RAD + slow, upper), np.maximum(upper - MARGIN_RAD - slow, lower)
        )
        follow = np.divide(TORQUE_SHARE * torque, kp, out=np.full_like(kp, np.inf), where=kp > 0)
        speed = SPEED_SHARE * speed
        return cls(home=home, middle=middle, slow=slow, quick=np.minimum(slow, follow), speed=speed)


@dataclass(frozen=True, kw_only=True)
class Wave:
    """What a signal is made for.

    Attributes:
        time_s: of each row (T,), from 0 [s].
        far: how far it may go [rad].
        speed: how fast it may move [rad/s].
        place: of this joint among those that move at once, from 0 to below 1; they are not to move alike.
        draw: random numbers.
    """

    time_s: np.ndarray
    far: float
    speed: float
    place: float
    draw: np.random.Generator

    @property
    def period_s(self) -> float:
        """Between rows [s]."""
        return float(self.time_s[1] - self.time_s[0])

    @property
    def whole_s(self) -> float:
        """How long it takes [s]."""
        return len(self.time_s) * self.period_s


def _up_and_down(phase: np.ndarray) -> np.ndarray:
    """From 0 to 1 and back in a phase of 1."""
    return 1.0 - np.abs(1.0 - 2.0 * (phase % 1.0))


def chirp(w: Wave) -> np.ndarray:
    """A sine whose frequency goes up and down again by equal factors, slower than its speed allows at high ones."""
    low, high = max(LOW_HZ, 2.0 / w.whole_s), min(HIGH_HZ, 0.25 / w.period_s)
    hertz = low * (high / low) ** _up_and_down(w.time_s / w.whole_s + w.place)
    turn = 2.0 * np.pi * hertz
    angle = np.concatenate([[0.0], np.cumsum(turn[:-1] * w.period_s)])
    return _tapered(np.minimum(w.far, w.speed / turn) * np.sin(angle), w)


def multisine(w: Wave) -> np.ndarray:
    """Sines of random frequencies; phases that begin at random and are turned until the peak is low.

    A wave that is clipped has phases of a lower peak (Van der Ouderaa, Schoukens and Renneboog 1988).
    """
    most = int(min(HIGH_HZ, 0.25 / w.period_s) * w.whole_s)
    grid = np.unique(np.geomspace(max(1.0, LOW_HZ * w.whole_s), most, 4 * TONES).round().astype(int))
    bins = w.draw.choice(grid, min(TONES, len(grid)), replace=False)
    share = 1.0 / (1.0 + bins / w.whole_s)  # as much of speed as of place
    lines = np.zeros(len(w.time_s) // 2 + 1, complex)
    lines[bins] = share * np.exp(1j * w.draw.uniform(0, 2 * np.pi, len(bins)))
    for _ in range(TURNS):
        wave = np.fft.irfft(lines, len(w.time_s))
        peak = CLIPPED * np.abs(wave).max()
        turned = np.fft.rfft(np.clip(wave, -peak, peak))[bins]
        lines[bins] = share * turned / np.maximum(np.abs(turned), 1e-12)
    best = _tapered(np.fft.irfft(lines, len(w.time_s)), w)
    fastest = np.abs(np.diff(best)).max() / w.period_s
    return best * min(w.far / np.abs(best).max(), w.speed / fastest)


def steps(w: Wave) -> np.ndarray:
    """Steps of three sizes, both ways, each with one back."""
    far = min(w.far, 0.5 * w.speed / SPEED_SHARE * w.period_s)  # safety lets no target jump farther in one period
    sizes = w.draw.permutation(far * np.array([1, -1, 2, -2, 3, -3]) / 3.0)
    levels = np.zeros(2 * len(sizes) + 1)
    levels[1::2] = sizes
    still_s = w.whole_s / len(levels)
    return levels[np.maximum(((w.time_s - w.place * still_s) / still_s).astype(int), 0)]


def sweeps(w: Wave) -> np.ndarray:
    """To one end, to the other and back, evenly; three times, each twice as fast as the one before."""
    begins = w.whole_s * np.array([0.0, 4.0, 6.0]) / 7.0
    turn = np.searchsorted(begins, w.time_s, side="right") - 1
    phase = (w.time_s - begins[turn]) / (w.whole_s * np.array([4.0, 2.0, 1.0]) / 7.0)[turn]
    far = min(w.far, 0.25 * w.speed * w.whole_s / 7.0)
    return w.draw.choice([-1.0, 1.0]) * far * (2.0 * _up_and_down(phase + 0.25) - 1.0)


def hold(w: Wave) -> np.ndarray:
    """Still at random poses, with a smooth move to each."""
    count = max(2, round(w.whole_s / POSE_S))
    far = min(w.far, 0.5 * w.speed * LEAD_S / PEAK)
    poses = np.append(far * w.draw.uniform(-1, 1, count - 1), 0.0)
    at = np.minimum((w.time_s / w.whole_s * count).astype(int), count - 1)
    before = np.concatenate([[0.0], poses])[at]
    share = np.array([smooth(s) for s in (w.time_s - at * w.whole_s / count) / LEAD_S])
    return before + share * (poses[at] - before)


def _tapered(wave: np.ndarray, w: Wave) -> np.ndarray:
    ends = np.minimum(w.time_s, w.time_s[-1] - w.time_s) / TAPER_S
    return wave * np.array([smooth(share) for share in ends])


WAVES: dict[Kind, tuple[Callable[[Wave], np.ndarray], bool]] = {
    # (the signal, whether it is quick)
    "chirp": (chirp, True),
    "multisine": (multisine, True),
    "steps": (steps, True),
    "sweeps": (sweeps, False),
    "hold": (hold, False),
}


def chosen(robot: RobotSpec, words: Sequence[str]) -> list[int]:
    """Places of the joints whose name contains one of the words; no word means every joint.

    Raises:
        OptionError: a word is in no joint's name.
    """
    names = robot.joint_names
    for word in words:
        if not any(word in name for name in names):
            raise OptionError(f"--joints {word}: it is in no joint's name; {nearest(word, names)}")
    return [i for i, name in enumerate(names) if not words or any(word in name for word in words)]


def sets_of(robot: RobotSpec, joints: Sequence[int], at_once: AtOnce) -> list[list[int]]:
    """The joints that move at once, one set after the other."""
    if at_once == "one":
        return [[i] for i in joints]
    if at_once == "all":
        return [list(joints)]
    sides: dict[str, list[int]] = {}
    for i in joints:
        name = robot.joint_names[i]
        sides.setdefault(next((side for side in ("left", "right") if side in name), ""), []).append(i)
    return list(sides.values())


def excitation(
    robot: RobotSpec, kind: Kind, sets: Sequence[Sequence[int]], *, seconds: float, amplitude_rad: float, seed: int
) -> np.ndarray:
    """Targets of a signal, (T, joints) [rad]: `seconds` for each set, joints that do not move at home.

    Args:
        robot: whose joints.
        kind: of signal.
        sets: the joints that move at once, one set after the other.
        seconds: of the signal, without the ways there and back [s].
        amplitude_rad: how far a joint goes at most [rad].
        seed: of what is random.
    """
    reach, period = Reach.of(robot, amplitude_rad), robot.control_period_s
    make, quick = WAVES[kind]
    away = reach.middle - reach.home
    lead_s = max(LEAD_S, PEAK * float(np.max(np.abs(away) / reach.speed)))
    lead = np.array([smooth(k * period / lead_s) for k in range(round(lead_s / period))])
    time_s = period * np.arange(round(seconds / period))
    blocks = []
    for row, moving in enumerate(sets):
        block = np.tile(reach.home, (2 * len(lead) + len(time_s), 1))
        for place, j in enumerate(moving):
            far = float((reach.quick if quick else reach.slow)[j])
            if far == 0.0:
                continue
            draw = np.random.default_rng([seed, list(WAVES).index(kind), row, j])
            wave = make(Wave(time_s=time_s, far=far, speed=float(reach.speed[j]), place=place / len(moving), draw=draw))
            block[:, j] += np.concatenate([away[j] * lead, away[j] + wave, away[j] * lead[::-1]])
        blocks.append(block)
    return np.concatenate(blocks)
