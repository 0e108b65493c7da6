"""What a judgement says, in sentences: values in, plain text out. The terminal and the page say the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from deploy.parity.report import Cause, Figure, Judgement, Layer, LayerName, Mark, Suspect

MARKS = {Mark.GOOD: "good", Mark.LOOK: "look at it", Mark.BAD: "bad", Mark.NONE: "not told"}
_NAMED_MAX = 3
# Places that are no joints: channels and columns of a log.
_CHANNELS = {
    "imu": "the IMU",
    "gyro": "the gyro",
    "orientation": "the IMU's orientation",
    "joints": "the joint readings",
    "joint_position": "the joint positions",
    "joint_velocity": "the joint velocities",
    "sent": "the targets",
    "carry": "the carry",
}


def short(joint: str) -> str:
    """A joint's name without what all names share."""
    return joint.removeprefix("dof_")


def capital(text: str) -> str:
    """The text with its first letter a capital."""
    return text[:1].upper() + text[1:]


def size(value: float, unit: str) -> str:
    """A value for a person: milliseconds, degrees and per cent where they say more."""
    match unit:
        case "s" if abs(value) < 1:
            return f"{digits(1e3 * value)} ms"
        case "rad":
            return f"{digits(math.degrees(value))}°"
        case "share":
            return f"{digits(100 * value)} %"
        case "ticks" if value == 1:
            return "1 tick"
    return f"{digits(value)} {unit}".rstrip()


def digits(value: float) -> str:
    """Three digits, without an exponent where it is small: a page would break a line at its sign."""
    text = f"{value:.3g}"
    return f"{Decimal(text):f}" if "e-0" in text else text


def several(places: Sequence[str], nothing: str) -> str:
    """Names as one text; `nothing` where there are none."""
    names = [_CHANNELS.get(place, short(place)) for place in places]
    if not names:
        return nothing
    if len(names) > _NAMED_MAX:
        return f"{', '.join(names[:_NAMED_MAX])} and {len(names) - _NAMED_MAX} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _subject(places: Sequence[str], nothing: str = "the joints") -> tuple[str, bool]:
    """(who a sentence is about, whether that is one)."""
    if not places or places[0] in _CHANNELS:
        text = several(places, nothing)
        return text, len(places) <= 1 and not text.endswith("s")
    return f"joint{'' if len(places) == 1 else 's'} {several(places, '')}", len(places) == 1


def said(suspect: Suspect) -> str:
    """What is wrong, with its size: one sentence."""
    where, value, unit = suspect.places, suspect.value, suspect.unit
    joints, one = _subject(where)
    told = "" if value is None else size(abs(value), unit)
    less = value is not None and value < 0
    match suspect.cause:
        case Cause.JOINTS_SWAPPED:
            text = f"{joints} are swapped: each one's commands or readings are another's"
        case Cause.JOINT_INVERTED:
            text = f"{joints} {'turns' if one else 'turn'} the other way round: the sign is flipped"
        case Cause.UNIT:
            units = ("radians", "degrees") if value is not None and 0 < value < 1 else ("degrees", "radians")
            text = f"{joints} {'is' if one else 'are'} in {units[0]} where {units[1]} are expected"
        case Cause.ZERO_OFFSET:
            text = f"the zero of {joints} is off{f' by {told}' if told else ''}"
        case Cause.IMU_TURNED:
            gyro = where[:1] == ("gyro",)
            axes = several([place for place in where if place not in _CHANNELS], "")
            about = f"{f' by {told}' if told else ''}{f' about {axes}' if axes else ''}"
            text = (
                f"the {'gyro' if gyro else 'IMU'} is turned{about} against {'its orientation' if gyro else 'the model'}"
            )
        case Cause.IMU_RATE:
            text = f"the IMU gives new readings {f'at only {told}' if told else 'less often than ticks come'}"
        case Cause.IMU_AGE:
            text = f"IMU readings are {told or 'too'} old when the policy gets them"
        case Cause.GAINS:
            text = f"the gains of {joints} differ{f': {_factor(value, unit)}' if value is not None else ''}"
        case Cause.DELAY:
            late = "earlier" if less else "later"
            text = f"commands act {told or 'much'} {late} than in the simulation"
        case Cause.MASS:
            extra = f"{told} {'lighter' if less else 'heavier'}" if told else "of another mass"
            text = f"{several(where, 'the robot')} is {extra} than the model"
        case Cause.STICKY:
            text = f"{joints} {'sticks' if one else 'stick'}{f': {told} of friction more' if told else ''}"
        case Cause.LOOSE:
            kind = "a spring of" if "/" in unit else "play of"
            text = f"{joints} {'is' if one else 'are'} loose{f': {kind} {told}' if told else ''}"
        case Cause.FROZEN:
            who, one = _subject(where, "a sensor")
            long = f" for {told}" if told else " again and again"
            text = f"{who} {'is' if one else 'are'} frozen: the same reading{long}"
        case Cause.STALE_CARRY:
            text = f"the policy's carry is not that of the tick before{f' in {told}' if told else ''}"
        case Cause.OTHER_POLICY:
            text = f"the recorded actions are not those of this bundle{f': {told} apart' if told else ''}"
        case Cause.LOOP_LATE:
            text = f"the control loop is late{f': {told}' if told else ''}"
        case Cause.GUARD:
            by = "" if suspect.value is None else f" by up to {suspect.value:.3g} times what the policy moves them"
            text = f"safety changed the targets of {joints}{by}"
    return capital(text) + "."


def _factor(value: float, unit: str) -> str:
    return f"{value:.3g} times the model's" if unit in ("", "times", "factor", "share") else size(value, unit)


def why(suspect: Suspect) -> str:
    """What speaks for it."""
    if suspect.direct:
        return "read off the log itself"
    return f"put into the simulation, it takes away {100 * suspect.explains:.0f} % of the gap"


_FIT = (
    "record motions with `ksim excite`, fit them with `ksim sysid`, then train with "
    "`ksim train --calibration calibration.yaml`"
)
_WIDEN = "train for it: `ksim train --parity report.json` widens the task's ranges"


def next_step(suspect: Suspect) -> str:
    """What to do about it: a command, or the file and the key to change."""
    joints = several(suspect.places, "the joints")
    text = ""
    match suspect.cause:
        case Cause.JOINTS_SWAPPED:
            text = (
                f"compare the `id` of {joints} in the robot's metadata.json with the motors' own; "
                "`ksim check --wiggle` moves one joint at a time and shows which one answers"
            )
        case Cause.JOINT_INVERTED:
            text = (
                "see with `ksim check --wiggle --joint NAME` which way it turns; change the sign in the server's "
                "configuration, or the joint's axis in robot.xml"
            )
        case Cause.UNIT:
            if suspect.places[:1] == ("gyro",):
                return "Name the unit that the server sends with `ksim run --gyro-unit`."
            text = "name the server's kind with `ksim run --server`; of an imported log, the unit in its map YAML"
        case Cause.ZERO_OFFSET:
            text = (
                f"set the zero of {joints} anew, if it is off with the motor limp; else the motor may be softer than "
                "the model's, which looks the same in a joint that stands still under a weight: `ksim sysid` with "
                "motions in which it moves tells the two apart"
            )
        case Cause.IMU_TURNED:
            text = (
                "compare the mounting with the site that `imu_site` in metadata.json names: its frame in robot.xml; "
                "`ksim check` shows where the robot thinks that down is"
            )
        case Cause.IMU_RATE:
            text = f"fix the driver's rate; or {_WIDEN}"
        case Cause.IMU_AGE:
            text = f"shorten the IMU's way; or {_WIDEN}"
        case Cause.GAINS:
            text = f"read back the gains that the motors have (`ksim check` compares them); else {_FIT}"
        case Cause.DELAY:
            text = f"find where it waits: round trips and periods are below; or {_WIDEN}"
            if suspect.value is not None and suspect.value < 0:
                text = (
                    "it was trained for more delay than there is: narrow channels.action.latency_s in the task's YAML"
                )
        case Cause.MASS:
            text = f"weigh it and correct the body's mass in robot.xml; or {_WIDEN}"
        case Cause.STICKY:
            text = f"turn {joints} by hand, limp, and look for what rubs; if it is to stay so, {_FIT}"
        case Cause.LOOSE:
            text = f"tighten the linkage and the horn of {joints}; if it is to stay so, {_FIT}"
        case Cause.FROZEN:
            text = "look at its cable and driver first; `ksim check` says whether its values change"
        case Cause.STALE_CARRY:
            text = "hand the carry that the policy returns to its next step, and take init_fn's only before the first"
        case Cause.OTHER_POLICY:
            text = "compare the digests with `ksim inspect policy.kinfer other.kinfer`; run the one that was trained"
        case Cause.LOOP_LATE:
            text = "free a core for `ksim run --cpu` or run it `--realtime`; the greatest gaps are below"
        case Cause.GUARD:
            text = "train with the limits that the robot has; which joint met which limit is below"
    return capital(text) + "."


def told(figure: Figure) -> str:
    """A figure with its unit; its place where it has one."""
    if figure.value is None or not math.isfinite(figure.value):
        return "cannot be told"
    number = _number(figure.value, figure.unit)
    return f"{number} ({short(figure.where)})" if figure.where else number


def bound(figure: Figure) -> str:
    """What would be good; empty where nothing is asked for."""
    if figure.good is None:
        return ""
    return f"{'from' if figure.at_least else 'up to'} {_number(figure.good, figure.unit)}"


def _number(value: float, unit: str) -> str:
    """A figure: as `size`, but angles stay in rad, as in report.json."""
    return f"{digits(value)} rad" if unit == "rad" else size(value, unit)


def headline(layer: Layer) -> str:
    """What says most of a layer, in one line."""
    figure = telling(layer)
    if figure is None:
        return layer.untold or "nothing measured"
    return f"{capital(figure.what)}: {told(figure)}" + (f", wanted {bound(figure)}" if bound(figure) else "")


def telling(layer: Layer) -> Figure | None:
    """The figure that says most of a layer: of its worst the nearest to its bound; None where it has none."""
    order = (Mark.BAD, Mark.LOOK, Mark.GOOD, Mark.NONE)
    return min(layer.figures, key=lambda f: (order.index(f.mark), -_of_bound(f)), default=None)


def _of_bound(figure: Figure) -> float:
    """A figure as a share of its bound: 1 is at it; 0 where it has none, or is none."""
    if figure.mark is Mark.NONE or figure.value is None or figure.good is None:
        return 0.0
    small, large = (figure.value, figure.good) if figure.at_least else (figure.good, abs(figure.value))
    return large / small if small > 0 else math.inf if large > 0 else 0.0


def worst_joints(judgement: Judgement) -> list[tuple[str, float, LayerName]]:
    """(joint, share of the bound, in which layer), the worst first.

    Of the actuators, which tell a joint from its neighbours best; where they tell none, each joint's worst layer.
    """
    own = [layer for layer in judgement.layers if layer.name is LayerName.ACTUATORS and layer.joints]
    found: dict[str, tuple[float, LayerName]] = {}
    for layer in own or judgement.layers:
        for joint, share in layer.joints.items():
            if math.isfinite(share) and share > found.get(joint, (-math.inf, layer.name))[0]:
                found[joint] = (share, layer.name)
    return sorted(((j, share, name) for j, (share, name) in found.items()), key=lambda row: -row[1])


def verdict(judgement: Judgement) -> str:
    """What dominates, at which joints, and whether reality is inside the simulated band: one or two sentences."""
    poor = [layer for mark in (Mark.BAD, Mark.LOOK) for layer in judgement.layers if layer.mark is mark]
    poor.sort(key=lambda layer: layer.name is LayerName.CLOSED_LOOP)  # what all others bring about, not a reason
    if judgement.suspects:
        first = judgement.suspects[0]
        more = len(judgement.suspects) - 1
        others = f" {more} more suspect{'' if more == 1 else 's'} below." if more else ""
        text = f"{said(first)} That is in the {first.layer.value} layer.{others}"
    elif poor:
        text = f"No single fault explains the gap. What stands out is the {poor[0].name.value} layer: "
        text += f"{headline(poor[0])}."
        joints = [joint for joint, share, _ in worst_joints(judgement) if share > 1.0]
        if joints:
            text += f" Beyond their bound: {several(joints, '')}."
    elif any(layer.mark is Mark.GOOD for layer in judgement.layers):
        text = "Nothing is wrong: every figure that could be told is inside its bound."
    else:
        text = "Nothing could be told: the log has none of what a layer needs."
    return text + _band(judgement)


def _band(judgement: Judgement) -> str:
    """Of the figures of the band alone: simulations that fall where the robot stood are another matter."""
    layer = next((layer for layer in judgement.layers if layer.name is LayerName.CLOSED_LOOP), None)
    marks = [f.mark for f in layer.figures if f.key.startswith("inside_")] if layer else []
    told = [mark for mark in marks if mark is not Mark.NONE]
    if not told:
        return ""
    return f" Reality is {'inside' if all(mark is Mark.GOOD for mark in told) else 'outside'} the simulated band."


def conclusion(judgement: Judgement) -> str:
    """The judgement's mark as a word or two."""
    if judgement.suspects:
        return "suspect found"
    return {Mark.GOOD: "agrees", Mark.LOOK: "look at it", Mark.BAD: "differs", Mark.NONE: "not told"}[judgement.mark]
