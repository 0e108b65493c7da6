"""Which runtimes a bundle fits, and what does not fit: K-Bots are driven in three ways. Pure, but for one data file.

What kinfer 0.6.1 takes was tried with it (tests/export/test_runtimes.py does so again). What pyfirmware takes was read
in kscalelabs/pyfirmware as of 2025-10-23; its gains are in robots/kbot/pyfirmware.json.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import robots
from deploy.bundle.graph import CARRY, GraphFacts
from robots.bundle import MEMBERS, Bundle
from robots.inputs import POLICY_INPUTS
from robots.spec import PolicySpec


class Target(enum.Enum):
    """What may run a bundle on a robot."""

    KOS = "kos"
    KINFER = "kinfer"
    PYFIRMWARE = "pyfirmware"


TITLES = {
    Target.KOS: "kos (ksim run)",
    Target.KINFER: "kinfer 0.6.1",
    Target.PYFIRMWARE: "pyfirmware (2025-10-23)",
}


class Gap(enum.Enum):
    """What of a bundle a runtime does not take, or takes otherwise than was meant; the value is how it is told."""

    DOES_NOT_LOAD = "ONNX Runtime does not run it here: {got}"
    CHANGED = "its specification was changed since the export"
    NO_ROBOT = "it tells no ids, gains and limits: ksim run needs --robot"
    UNPROVEN = "it was not proven to be its checkpoint: --unvalidated runs it nevertheless"
    FILE_NAME = "the file's name is {got}, expected one that ends in {expected}"
    MEMBERS = "the archive holds {got}, expected {expected} in this order"
    NO_INPUT = "step_fn does not read {got}, which it always gives"
    INPUT = "step_fn reads {got}, which it does not give"
    INIT_INPUT = "init_fn reads {got}, expected no input"
    OUTPUTS = "{got} outputs of init_fn and step_fn, expected {expected}"
    OPSET = "opset {got}, expected at most {expected}"
    IR_VERSION = "IR version {got}, expected at most {expected}"
    COMMANDS_NOT_NAMED = "metadata.json has no command_names"
    CARRY_NUMBER = "carry_size is a number, expected a shape"
    NO_COMMAND = "no command {got}, which its keyboard needs"
    COMMAND = "the commands {got} stay 0: nothing there can set them"
    JOINT = "its robot has no joint {got}"
    PERIOD = "control period {got} s, expected {expected}"
    NO_HOME = "no joint_biases: it starts from a home pose of its own"
    HOME = "joint_biases is not one number for each joint"
    FAR = "home of {got} rad, expected at most {expected}: it refuses to start a robot that is farther from zero"
    GAINS = "trained with kp/kd {got}, there {expected}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing of a bundle that a runtime does not take, or takes otherwise than was meant.

    Attributes:
        gap: what.
        blocks: it does not run there; else it runs, and this is to be known.
        got: what the bundle has; joints and their numbers by name.
        expected: what the runtime takes, in the same form.
    """

    gap: Gap
    blocks: bool = True
    got: Any = ()
    expected: Any = ()

    @property
    def text(self) -> str:
        """A few words."""
        return self.gap.value.format(got=_told(self.got), expected=_told(self.expected))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "gap": self.gap.name.lower(),
            "blocks": self.blocks,
            "got": self.got,
            "expected": self.expected,
            "text": self.text,
        }


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        numbers = {name: v if isinstance(v, tuple) else (v,) for name, v in value.items()}
        return ", ".join(f"{name} {'/'.join(map(_told, v))}" for name, v in numbers.items())
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_told, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Fits = Mapping[Target, tuple[Finding, ...]]

# ONNX Runtime 1.20, which kinfer 0.6.1 brings
OPSET_MAX, IR_MAX = 21, 10
# pyfirmware gives these and takes no fewer: all of today's but two
_NOT_GIVEN = ("accelerometer", "time")
PYFIRMWARE_INPUTS = (*(i.name for i in POLICY_INPUTS if not i.old and i.name not in _NOT_GIVEN), CARRY)
# its keyboard needs the first three; what else it can set
PYFIRMWARE_KEYS = ("xvel", "yvel", "yawrate")
PYFIRMWARE_COMMANDS = (
    *(*PYFIRMWARE_KEYS, "baseheight", "baseroll", "basepitch"),
    *(s + joint for s in "rl" for joint in ("shoulderpitch", "shoulderroll", "shoulderyaw", "elbowpitch", "wristroll")),
)
PYFIRMWARE_PERIOD_S = 0.02
PYFIRMWARE_FAR_RAD = 2.0
# both sides are decimal; this only forgives their conversion
_TOLERANCE = 1e-6


@functools.cache
def pyfirmware_gains() -> dict[str, tuple[float, float]]:
    """(kp [N m/rad], kd [N m s/rad]) that pyfirmware sets, by joint: it takes none from a bundle."""
    path = Path(robots.__file__).parent / "kbot" / "pyfirmware.json"
    return {name: (g["kp"], g["kd"]) for name, g in json.loads(path.read_text("utf-8"))["gains"].items()}


def _kos(bundle: Bundle, stamp: str) -> Iterator[Finding]:
    if stamp == "another":
        yield Finding(gap=Gap.CHANGED)
    if bundle.spec is None:
        yield Finding(gap=Gap.NO_ROBOT, blocks=False)
    elif not bundle.spec.validated:
        yield Finding(gap=Gap.UNPROVEN, blocks=False)


def _versions(init: GraphFacts, step: GraphFacts, blocks: bool) -> Iterator[Finding]:
    opset, ir_version = max(init.opset, step.opset), max(init.ir_version, step.ir_version)
    if opset > OPSET_MAX:
        yield Finding(gap=Gap.OPSET, blocks=blocks, got=opset, expected=OPSET_MAX)
    if ir_version > IR_MAX:
        yield Finding(gap=Gap.IR_VERSION, blocks=blocks, got=ir_version, expected=IR_MAX)


def _signature(init: GraphFacts, step: GraphFacts) -> Iterator[Finding]:
    if init.inputs:
        yield Finding(gap=Gap.INIT_INPUT, got=tuple(init.inputs))
    outputs = len(init.outputs), len(step.outputs)
    if outputs != (1, 2):
        yield Finding(gap=Gap.OUTPUTS, got=outputs, expected=(1, 2))


def _kinfer(bundle: Bundle, init: GraphFacts, step: GraphFacts) -> Iterator[Finding]:
    yield from _signature(init, step)
    known = (*(i.name for i in POLICY_INPUTS if not i.old), CARRY)
    unknown = tuple(name for name in step.inputs if name not in known)
    if unknown:
        yield Finding(gap=Gap.INPUT, got=unknown, expected=known)
    if not bundle.written.named_commands:
        yield Finding(gap=Gap.COMMANDS_NOT_NAMED)
    if not bundle.written.carry_shape:
        yield Finding(gap=Gap.CARRY_NUMBER)
    yield from _versions(init, step, True)


def _pyfirmware(
    bundle: Bundle, init: GraphFacts, step: GraphFacts, name: str, gains: Mapping[str, tuple[float, float]]
) -> Iterator[Finding]:
    if not name.endswith(".kinfer"):
        yield Finding(gap=Gap.FILE_NAME, got=name, expected=".kinfer")
    if bundle.written.members != MEMBERS:
        yield Finding(gap=Gap.MEMBERS, got=bundle.written.members, expected=MEMBERS)
    yield from _signature(init, step)
    missing = tuple(i for i in PYFIRMWARE_INPUTS if i not in step.inputs)
    if missing:
        yield Finding(gap=Gap.NO_INPUT, got=missing, expected=PYFIRMWARE_INPUTS)
    extra = tuple(i for i in step.inputs if i not in PYFIRMWARE_INPUTS)
    if extra:
        yield Finding(gap=Gap.INPUT, got=extra, expected=PYFIRMWARE_INPUTS)
    # its onnxruntime is whichever is installed there: nothing pins it
    yield from _versions(init, step, False)
    if not bundle.written.named_commands:
        yield Finding(gap=Gap.COMMANDS_NOT_NAMED)
    else:
        absent = tuple(n for n in PYFIRMWARE_KEYS if n not in bundle.command_names)
        if absent:
            yield Finding(gap=Gap.NO_COMMAND, got=absent, expected=PYFIRMWARE_KEYS)
        still = tuple(n for n in bundle.command_names if n not in PYFIRMWARE_COMMANDS)
        if still:
            yield Finding(gap=Gap.COMMAND, blocks=False, got=still)
    strange = tuple(n for n in bundle.joint_names if n not in gains)
    if strange:
        yield Finding(gap=Gap.JOINT, got=strange)
    if bundle.written.odd_biases:
        yield Finding(gap=Gap.HOME)
    elif bundle.joint_biases is None:
        yield Finding(gap=Gap.NO_HOME, blocks=False)
    home = dict(zip(bundle.joint_names, bundle.joint_biases or (), strict=False))
    far = {n: angle for n, angle in home.items() if abs(angle) > PYFIRMWARE_FAR_RAD}
    if far:
        yield Finding(gap=Gap.FAR, got=far, expected=PYFIRMWARE_FAR_RAD)
    if bundle.spec is not None:
        yield from _trained(bundle.spec, gains)


def _trained(spec: PolicySpec, gains: Mapping[str, tuple[float, float]]) -> Iterator[Finding]:
    """What pyfirmware does otherwise than training did."""
    if abs(spec.control_period_s - PYFIRMWARE_PERIOD_S) > _TOLERANCE:
        yield Finding(gap=Gap.PERIOD, got=spec.control_period_s, expected=PYFIRMWARE_PERIOD_S)
    differ = {
        j.name: (j.kp, j.kd)
        for j in spec.robot.joints
        if j.name in gains
        and any(abs(a - b) > _TOLERANCE * max(1.0, a) for a, b in zip((j.kp, j.kd), gains[j.name], strict=True))
    }
    if differ:
        yield Finding(gap=Gap.GAINS, blocks=False, got=differ, expected={name: gains[name] for name in differ})


def judge(
    bundle: Bundle, init: GraphFacts, step: GraphFacts, name: str, *, runs: str = "", stamp: str = "the same"
) -> dict[Target, tuple[Finding, ...]]:
    """What each runtime does not take of a bundle; it fits where nothing that is found blocks.

    Args:
        bundle: the bundle; the door to graphs (read_graphs) has let it through: float32, fixed sizes.
        init: facts of the graph of the first carry.
        step: facts of the graph of a step.
        name: of the file.
        runs: why ONNX Runtime does not run it here; empty where it does.
        stamp: whether the graphs carry the specification of metadata.json, as a Card says it.
    """
    # all of them run the graphs in ONNX Runtime
    broken = (Finding(gap=Gap.DOES_NOT_LOAD, got=runs),) if runs else ()
    return {
        Target.KOS: (*broken, *_kos(bundle, stamp)),
        Target.KINFER: (*broken, *_kinfer(bundle, init, step)),
        Target.PYFIRMWARE: (*broken, *_pyfirmware(bundle, init, step, name, pyfirmware_gains())),
    }


def fits(found: Sequence[Finding]) -> bool:
    """Whether a runtime with these findings runs the bundle."""
    return not any(finding.blocks for finding in found)


def rows(judged: Fits) -> list[tuple[str, str]]:
    """(runtime, whether the bundle fits it) of each: a line for each thing that keeps it out or is to be known."""
    out = []
    for target, found in judged.items():
        lines = [f"does NOT fit: {f.text}" for f in found if f.blocks] or ["fits"]
        lines += [f"warning: {f.text}" for f in found if not f.blocks]
        out.append((TITLES[target], "\n".join(lines)))
    return out


def to_json(judged: Fits) -> dict[str, Any]:
    """As plain values, by the runtime's name."""
    return {
        target.value: {"fits": fits(found), "findings": [finding.to_json() for finding in found]}
        for target, found in judged.items()
    }
