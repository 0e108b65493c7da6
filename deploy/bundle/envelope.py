"""What the policy met in simulation, against what the robot measures before the policy's first step.

A wrong joint order, zero offset, sign or unit, or an IMU that is mounted otherwise, shows while the robot still
holds the home pose: as a reading that training never gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.errors import CheckError
from robots.inputs import JOINT_INPUTS, POLICY_INPUTS
from robots.spec import PolicySpec

# How far beyond the values of training a reading may lie: this share of the span that training had, and
SPAN_SHARE = 0.25
# for each input its slack more; an input without one, as the time and the command, is not looked at.
SLACK = {i.name: i.slack for i in POLICY_INPUTS if i.slack is not None}
_AXES = ("the x axis", "the y axis", "the z axis")


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Least and greatest value of each element of each input in training.

    Attributes:
        spans: by name of the input, (least, greatest), each (k,).
        labels: by name of the input, what each element is called.
        units: by name of the input.
    """

    spans: Mapping[str, tuple[np.ndarray, np.ndarray]]
    labels: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]

    @classmethod
    def from_spec(cls, spec: PolicySpec) -> Envelope:
        """The envelope that validation left in a bundle; without spans where it left none.

        Raises:
            CheckError: it does not fit the inputs.
        """
        spans, labels, units = {}, {}, {}
        for array in spec.inputs:
            if array.name not in spec.envelope or array.name not in SLACK:
                continue
            size = int(np.prod(array.shape))
            try:
                ends = [np.asarray(spec.envelope[array.name][end], dtype=np.float64) for end in ("low", "high")]
            except (KeyError, TypeError, ValueError, OverflowError):
                ends = []
            if [e.shape for e in ends] != [(size,)] * 2 or not all(np.isfinite(e).all() for e in ends):
                raise CheckError(
                    f"envelope of input {array.name}: expected low and high, {size} numbers each; export it again"
                )
            spans[array.name] = (ends[0], ends[1])
            labels[array.name] = spec.robot.joint_names if array.name in JOINT_INPUTS else _AXES
            units[array.name] = array.unit
        return cls(spans=spans, labels=labels, units=units)

    def outside(self, inputs: Mapping[str, np.ndarray]) -> list[str]:
        """What lies beyond the values of training and the margin, one string an element."""
        found = []
        for name, (low, high) in self.spans.items():
            margin = SPAN_SHARE * (high - low) + SLACK[name]
            value = np.asarray(inputs[name], dtype=np.float64)
            for i in np.flatnonzero(~((value >= low - margin) & (value <= high + margin))):
                unit, of = self.units[name], "of" if name in JOINT_INPUTS else "along"
                found.append(
                    f"{name} {of} {self.labels[name][i]}: {value[i]:.3g} {unit} measured, "
                    f"{low[i]:.3g} to {high[i]:.3g} {unit} in training"
                )
        return found
