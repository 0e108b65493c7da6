"""What a comparison says: layers with their figures and bounds, suspects in order. Values; words are made elsewhere.

deploy/parity/words.py makes the sentences, deploy/parity/page.py the page.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

# Exit status of `ksim parity` where a layer is bad, something is suspected, or a calibration is no better than the
# published figures; 1 is an error, 2 a word that is no option.
EXIT_BAD = 3


class Mark(enum.Enum):
    """How a figure stands to its bounds."""

    GOOD = "good"
    LOOK = "look"
    BAD = "bad"
    NONE = "none"  # not measured, or without a bound


class LayerName(enum.Enum):
    """The layers between a policy and the world, in the order in which one explains the next."""

    POLICY = "policy"  # recorded inputs give the recorded actions
    ACTION_PATH = "action path"  # action to target to motor: guard, loss, delay
    SENSING = "sensing"  # age, rate, repeats, drop-outs, noise, bias, quantisation
    ACTUATORS = "actuators"  # targets to motion, joint by joint
    BODY = "body"  # masses, contacts: short windows from the measured state
    CLOSED_LOOP = "closed loop"  # the same commands in simulation, many times
    TIMING = "timing"  # the loop's own clock


class Cause(enum.Enum):
    """What may be wrong. Each can be put into the simulation, or read off the log itself."""

    JOINTS_SWAPPED = "joints swapped"
    JOINT_INVERTED = "joint inverted"
    UNIT = "degrees for radians"
    ZERO_OFFSET = "zero offset"
    IMU_TURNED = "IMU turned"
    IMU_RATE = "IMU rate"
    IMU_AGE = "IMU age"
    GAINS = "gains"
    DELAY = "delay"
    MASS = "mass"
    STICKY = "sticky joint"  # friction, stiction
    LOOSE = "loose joint"  # play, a spring
    FROZEN = "frozen sensor"
    STALE_CARRY = "stale carry"
    OTHER_POLICY = "other policy"
    LOOP_LATE = "late loop"
    GUARD = "targets changed by safety"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure.

    Attributes:
        key: its name in report.json.
        what: for a person.
        value: in `unit`; None where it cannot be told.
        unit: SI, or "share", "ticks".
        good: up to here it is good (from here, if `at_least`); None: no bound.
        poor: beyond this it is bad.
        at_least: the bounds are least values.
        where: the joint or channel that it is of, or that is the worst; empty: all.
        mean: of several logs, whose worst `value` is; None of one.
    """

    key: str
    what: str
    value: float | None
    unit: str
    good: float | None = None
    poor: float | None = None
    at_least: bool = False
    where: str = ""
    mean: float | None = None

    @property
    def mark(self) -> Mark:
        """How it stands."""
        if self.value is None or not math.isfinite(self.value) or self.good is None:
            return Mark.NONE
        poor = self.good if self.poor is None else self.poor
        sign = -1.0 if self.at_least else 1.0
        size = sign * (self.value if self.at_least else abs(self.value))
        return Mark.GOOD if size <= sign * self.good else Mark.LOOK if size <= sign * poor else Mark.BAD


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer.

    Attributes:
        name: which.
        figures: the most telling first.
        joints: by joint, its share of the layer's bound: 1 is at the bound of "good"; empty where it has none.
        untold: why nothing was measured; empty where something was.
    """

    name: LayerName
    figures: tuple[Figure, ...] = ()
    joints: dict[str, float] = field(default_factory=dict)
    untold: str = ""

    @property
    def mark(self) -> Mark:
        """The worst of its figures."""
        order = (Mark.BAD, Mark.LOOK, Mark.GOOD)
        return next((mark for mark in order if any(f.mark is mark for f in self.figures)), Mark.NONE)


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """What may explain the gap.

    Attributes:
        cause: what.
        layer: in which layer it sits.
        places: joints, channels or axes.
        value: the size that explains most, in `unit`; None where it has none.
        unit: of the value.
        explains: share of the gap that it takes away when it is put into the simulation, 0 to 1; 1 where it is read off
            the log itself.
        direct: read off the log itself; nothing was simulated.
    """

    cause: Cause
    layer: LayerName
    places: tuple[str, ...] = ()
    value: float | None = None
    unit: str = ""
    explains: float = 0.0
    direct: bool = False


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All of it, for one log or for several together.

    Attributes:
        layers: one for each LayerName, in its order.
        suspects: the first explains most; empty where nothing is wrong.
    """

    layers: tuple[Layer, ...]
    suspects: tuple[Suspect, ...] = ()

    @property
    def mark(self) -> Mark:
        """The worst of the layers; BAD where there is a suspect."""
        if self.suspects:
            return Mark.BAD
        order = (Mark.BAD, Mark.LOOK, Mark.GOOD)
        return next((mark for mark in order if any(layer.mark is mark for layer in self.layers)), Mark.NONE)
