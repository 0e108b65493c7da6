"""What is checked before a robot is touched: bundle, robot and command line must fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.bundle.envelope import Envelope
from deploy.bundle.session import OnnxPolicy, self_test, spec_without_exporter
from deploy.errors import CheckError
from robots.bundle import Bundle, read_bundle
from robots.command_names import known_as
from robots.errors import SpecError
from robots.load import built_in_robots, read_robot, with_home_of
from robots.origins import Origin
from robots.spec import PolicySpec, RobotSpec
from robots.understood import as_line, facts, told_by_bundle
from toolkit.files import packaged

COMPARED = ("id", "kp", "kd", "torque_limit_nm", "lower_rad", "upper_rad", "home_rad")
# The property of both graphs that holds the digest of the specification they were exported with.
STAMP = "spec_digest"
# Both sides are written at full precision; this only forgives a conversion from degrees.
TOLERANCE = 1e-6
_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything a run needs that is not the robot itself.

    Attributes:
        data: the .kinfer file's bytes.
        bundle: read from them.
        spec: the bundle's own, or made from the bundle and the robot named.
        policy: loaded and run once.
        command: the command vector (commands,).
        compared: name of the robot that the bundle was compared with; empty for none.
        warnings: what could not be checked, or was waived, one line each.
        understood: what was understood of the robot, in one line.
    """

    data: bytes
    bundle: Bundle
    spec: PolicySpec
    policy: OnnxPolicy
    command: np.ndarray
    compared: str = ""
    warnings: tuple[str, ...] = ()
    understood: str = ""


def _list(items: Sequence[str]) -> str:
    more = f"; and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return "; ".join(items[:_LISTED]) + more


def differences(trained: RobotSpec, robot: RobotSpec) -> list[str]:
    """Where a robot is not the one that the policy was trained for, one string each; order does not matter."""
    found = [f"no joint {name}" for name in trained.joint_names if name not in robot.joint_names]
    found += [f"joint {name} is unknown to the policy" for name in robot.joint_names if name not in trained.joint_names]
    for joint in trained.joints:
        if joint.name not in robot.joint_names:
            continue
        other = robot.joint(joint.name)
        for field in COMPARED:
            a, b = getattr(joint, field), getattr(other, field)
            if abs(a - b) > TOLERANCE * max(1.0, abs(a)):
                found.append(f"{joint.name}: {field} {b:.6g} on the robot, {a:.6g} in the bundle")
    if abs(trained.control_period_s - robot.control_period_s) > TOLERANCE:
        found.append(f"control_period_s {robot.control_period_s:g} on the robot, {trained.control_period_s:g} trained")
    return found


def in_bundle_order(bundle: Bundle, robot: RobotSpec) -> RobotSpec:
    """The robot with its joints in the bundle's order, and at home where the bundle says, if it does.

    Raises:
        CheckError: the two do not have the same joints, or the bundle's home pose is beyond the robot's limits.
    """
    missing = [n for n in bundle.joint_names if n not in robot.joint_names]
    extra = [n for n in robot.joint_names if n not in bundle.joint_names]
    if missing or extra:
        parts = [f"the robot has no {', '.join(missing)}"] if missing else []
        parts += [f"the bundle does not command {', '.join(extra)}"] if extra else []
        raise CheckError(f"bundle and robot {robot.name}: {'; '.join(parts)}; expected the same joints in both")
    joints = [robot.joint(n) for n in bundle.joint_names]
    if bundle.joint_biases is not None:
        try:
            joints = [j.replace(home_rad=home) for j, home in zip(joints, bundle.joint_biases, strict=True)]
        except SpecError as error:
            raise CheckError(
                f"joint_biases: the bundle's home pose is none of robot {robot.name}: {error}; "
                "name the robot that it is for"
            ) from error
    return robot.replace(joints=tuple(joints))


def _other_home(spec: PolicySpec, robot: RobotSpec) -> list[str]:
    """That the home pose is the bundle's, where the robot's own is another."""
    apart = {j.name: (j.home_rad, robot.joint(j.name).home_rad) for j in spec.robot.joints}
    told = [f"{n} {a:.4g}, not {b:.4g}" for n, (a, b) in apart.items() if abs(a - b) > TOLERANCE * max(1.0, abs(a))]
    return [f"the home pose is the bundle's, not that of robot {robot.name}: {_list(told)} rad"] if told else []


def parse_commands(pairs: Sequence[str]) -> dict[str, float]:
    """`["vx=0.3", "yaw=0"]` as numbers by name.

    Raises:
        CheckError: not name=number, or a name twice.
    """
    values: dict[str, float] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not equals or not name or not math.isfinite(value):
            raise CheckError(f"--command {pair!r}: expected NAME=NUMBER, for example xvel=0.3")
        if name in values:
            raise CheckError(f"--command {name}: given twice; expected once")
        values[name] = value
    return values


def command_vector(spec: PolicySpec, values: Mapping[str, float]) -> np.ndarray:
    """The command in the policy's order; what is not given is 0, or the end of its range next to 0.

    Older names are read too.

    Raises:
        CheckError: an unknown name, or a value outside the range of training.
    """
    given = {known_as(name, spec.command_names): value for name, value in values.items()}
    if len(given) < len(values):
        raise CheckError(f"--command {', '.join(values)}: two names of one command; expected each command once")
    values = given
    unknown = sorted(set(values) - set(spec.command_names))
    if unknown:
        known = ", ".join(spec.command_names) or "no commands at all"
        raise CheckError(f"--command {', '.join(unknown)}: unknown; this policy takes {known}")
    out = np.zeros(len(spec.commands))
    for i, command in enumerate(spec.commands):
        value = values.get(command.name, min(max(0.0, command.low), command.high))
        if not command.low <= value <= command.high:
            raise CheckError(
                f"--command {command.name}={value:g}: expected {command.low:g} to {command.high:g} "
                f"{command.unit or '(no unit)'}, the range that the policy was trained for"
            )
        out[i] = value
    return out


def _check_proofs(path: str | Path, spec: PolicySpec, unvalidated: bool) -> list[str]:
    """A bundle of ours was proven to be its checkpoint; the warning where that is waived.

    Raises:
        CheckError: it was not, and that is not waived.
    """
    if spec.validated:
        reduced = spec.reduced()
        return [f"the bundle's proofs are reduced: {reduced}"] if reduced else []
    if not spec.proofs and not spec.self_test:
        hint = "ksim export proves checkpoints, export.prove policies of yours on recorded inputs; or add"
    else:
        hint = "export it again, or add"
    failures = spec.proofs.get("failures")
    known = isinstance(failures, list) and failures
    why = f"it failed: {' '.join(str(failures[0]).split())[:200]}" if known else "it holds no proofs"  # type: ignore[index]
    if not unvalidated:
        raise CheckError(
            f"{path}: not validated ({why}); expected a bundle that ksim export proved to be its checkpoint; "
            f"{hint} --unvalidated to run it nevertheless"
        )
    return [f"the bundle is not validated ({why}); it runs because of --unvalidated"]


def _stamps(policy: OnnxPolicy) -> set[str | None]:
    """Digests of the specification that the graphs were exported with."""
    return {facts.properties.get(STAMP) for facts in policy.facts}


def _check_stamp(spec: PolicySpec, policy: OnnxPolicy) -> None:
    """The graphs were exported with this specification, as far as they tell.

    Raises:
        CheckError: they were exported with another one.
    """
    if _stamps(policy) - {None, spec.contract().digest}:
        raise CheckError(
            "metadata.json: the specification is not the one that the graphs were exported with: gains, limits, names "
            "or ranges were changed since; expected the bundle as ksim export wrote it; export it again"
        )


def _check_contract(spec: PolicySpec, policy: OnnxPolicy, ours: bool) -> list[str]:
    """The self-test passes and the envelope can be read; warnings where the bundle has none.

    Raises:
        ToolkitError: the self-test fails, or one of them is not readable.
    """
    missing = []
    if ours and _stamps(policy) == {None}:
        missing.append("no digest of its specification in its graphs")
    if spec.self_test:
        self_test(policy, spec)
    else:
        missing.append("no self-test")
    if not Envelope.from_spec(spec).spans:
        missing.append("no envelope of inputs")
    if not missing:
        return []
    return [
        f"the bundle has {' and '.join(missing)}: whether graph, joint order, units and gravity are those of training "
        "could not be checked in full; see that the robot reads its home pose right"
    ]


def prepare(
    path: str | Path, robot: str | Path | None, commands: Mapping[str, float], *, unvalidated: bool = False
) -> Prepared:
    """Read and check a bundle against the robot named and the commands given.

    Args:
        path: the .kinfer file.
        robot: name or folder; None takes the built-in robot that the bundle names, or else the one in the bundle.
        commands: by name.
        unvalidated: take a bundle of ours that was not proven to be its checkpoint.

    Raises:
        ToolkitError: something does not fit; the message says what.
    """
    path = packaged(path)
    bundle = read_bundle(path)
    data = Path(path).read_bytes()
    if robot is None and bundle.spec is not None and bundle.spec.robot.name in built_in_robots():
        robot = bundle.spec.robot.name
    loaded, understood = None, "" if bundle.spec is None else told_by_bundle(bundle.spec.robot)
    if robot is not None:
        loaded, origins = read_robot(robot)
        if bundle.spec is not None and origins.home.guess:
            loaded = with_home_of(loaded, origins, bundle.spec.robot)
            origins = replace(origins, home=Origin(how="the bundle's, where the folder says none"))
        understood = as_line(facts(loaded, origins))
    if bundle.spec is None and loaded is None:
        raise CheckError(
            f"{path}: it tells joint names only, no ids, gains or limits (another exporter wrote it); "
            "name the robot that they come from: --robot kbot"
        )
    policy = OnnxPolicy(bundle)
    if bundle.spec is not None:
        _check_stamp(bundle.spec, policy)
    if bundle.spec is not None and loaded is not None:
        found = differences(bundle.spec.robot, loaded)
        if found:
            raise CheckError(
                f"{path}: trained for another robot than {loaded.name}: {_list(found)}; "
                "train for this robot, or correct its metadata"
            )
    warnings = [] if bundle.spec is None else _check_proofs(path, bundle.spec, unvalidated)
    spec = bundle.spec
    if spec is None:
        assert loaded is not None
        spec = spec_without_exporter(bundle, policy, in_bundle_order(bundle, loaded))
        warnings += _other_home(spec, loaded)
    command = command_vector(spec, commands)
    warnings += _check_contract(spec, policy, bundle.spec is not None)
    return Prepared(
        data=data,
        bundle=bundle,
        spec=spec,
        policy=policy,
        command=command,
        compared="" if loaded is None else loaded.name,
        warnings=tuple(warnings),
        understood=understood,
    )
