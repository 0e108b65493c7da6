"""What a bundle is, as plain data: the card that `ksim inspect` prints, and how two cards differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bundle.graph import GraphFacts, read_graphs
from deploy.bundle.margins import to_json as margins_json
from deploy.bundle.session import OnnxPolicy
from deploy.bundle.targets import Fits, judge
from deploy.bundle.targets import to_json as fits_json
from deploy.errors import PolicyError
from robots.bundle import EXTRA_KEY, Bundle, read_bundle
from robots.errors import SpecError
from robots.spec import PolicySpec
from toolkit import strict_json


@dataclass(frozen=True, kw_only=True)
class Card:
    """A bundle, checked.

    Attributes:
        path: the file.
        size: of the file [bytes].
        file_digest: SHA-256 of the file.
        bundle: what it holds.
        init: facts of the graph of the first carry.
        step: facts of the graph of a step.
        runs: empty where ONNX Runtime runs it here, else why not.
        stamp: whether the graphs carry the specification of metadata.json: "the same", "another" or "none".
        fits: what each runtime does not take of it.
    """

    path: Path
    size: int
    file_digest: str
    bundle: Bundle
    init: GraphFacts
    step: GraphFacts
    runs: str
    stamp: str
    fits: Fits

    @property
    def spec(self) -> PolicySpec | None:
        """What our exporter added."""
        return self.bundle.spec

    @property
    def state(self) -> str:
        """In a word, whether it was proven."""
        if self.spec is None:
            return "unknown"
        if self.spec.validated:
            return "validated"
        return "forced" if self.spec.proofs else "unvalidated"

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of what it is made of; empty where the bundle does not tell."""
        spec = self.spec
        return {
            "file": self.file_digest,
            "bundle": self.bundle.digest,
            "init_fn": self.init.digest,
            "step_fn": self.step.digest,
            "weights": spec.weights_digest if spec else "",
            "config": spec.config_digest if spec else "",
            "robot": spec.robot.digest if spec else "",
        }

    def to_json(self) -> dict[str, Any]:
        """Everything at full precision; of the self-test only what its steps are."""
        spec, bundle = self.spec, self.bundle
        graphs = {}
        for name, facts in (("init_fn", self.init), ("step_fn", self.step)):
            graphs[name] = {k: v for k, v in dataclasses.asdict(facts).items() if k != "properties"}
        return {
            "file": str(self.path),
            "bytes": self.size,
            "state": self.state,
            "runs": self.runs or True,
            "stamp": self.stamp,
            "targets": fits_json(self.fits),
            "joint_names": list(bundle.joint_names),
            "command_names": list(bundle.command_names),
            "carry_size": bundle.carry_size,
            "carry_shape": list(bundle.carry_shape),
            "joint_biases": bundle.joint_biases,
            "members": list(bundle.written.members),
            "spec": None if spec is None else spec.replace(self_test={}, margins=None).to_json(),
            "self_test_steps": self.self_test_steps,
            "self_test_parts": list(self.self_test_parts),
            "margins": None if spec is None or spec.margins is None else margins_json(spec.margins),
            "graphs": graphs,
            "digests": self.digests,
        }

    @property
    def self_test_steps(self) -> int:
        """Steps of the self-test, 0 where there is none."""
        actions = self.spec.self_test.get("actions") if self.spec else None
        return len(actions) if isinstance(actions, (list, tuple)) else 0

    @property
    def self_test_parts(self) -> tuple[str, ...]:
        """What the steps of the self-test are, in order; nothing where it does not tell."""
        parts = self.spec.self_test.get("parts") if self.spec else None
        parts = parts if isinstance(parts, (list, tuple)) else ()
        return tuple(str(part.get("name", "")) for part in parts if isinstance(part, dict))


def _stamp(bundle: Bundle, facts: GraphFacts) -> str:
    text = facts.properties.get(EXTRA_KEY)
    if text is None:
        return "none"
    try:
        stamped = PolicySpec.from_json(strict_json.loads(text.encode()))
    except (ValueError, SpecError):
        return "another"
    return "the same" if bundle.spec is not None and stamped == bundle.spec.contract() else "another"


def make_card(path: str | Path) -> Card:
    """Read and check a bundle.

    Raises:
        BundleError: it cannot be read.
        PolicyError: a graph is not what a policy needs.
    """
    path = Path(path)
    bundle = read_bundle(path)
    data = path.read_bytes()
    try:
        init, step = read_graphs(bundle)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    try:
        OnnxPolicy(bundle)
        runs = ""
    except PolicyError as error:
        runs = str(error)
    stamps = {_stamp(bundle, init), _stamp(bundle, step)}
    stamp = stamps.pop() if len(stamps) == 1 else "another"
    return Card(
        path=path,
        size=len(data),
        file_digest=hashlib.sha256(data).hexdigest(),
        bundle=bundle,
        init=init,
        step=step,
        runs=runs,
        stamp=stamp,
        fits=judge(bundle, init, step, path.name, runs=runs, stamp=stamp),
    )


def flatten(value: Any, at: str = "") -> dict[str, Any]:
    """Leaves by dotted name; a list of named objects by their names, any other list is a leaf."""
    if isinstance(value, dict) and value:
        inner = value.items()
    elif isinstance(value, (list, tuple)) and value and all(isinstance(v, dict) and "name" in v for v in value):
        inner = ((v["name"], {k: w for k, w in v.items() if k != "name"}) for v in value)
    else:
        return {at: value}
    out: dict[str, Any] = {}
    for key, each in inner:
        out |= flatten(each, f"{at}.{key}" if at else str(key))
    return out


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One field in which two bundles differ; None where one of them does not have it."""

    field: str
    a: Any
    b: Any


def graph_relation(a: GraphFacts, b: GraphFacts) -> str:
    """How two graphs relate: "the same bytes", "the same graph, other notes in it" or "another graph"."""
    if a.digest == b.digest:
        return "the same bytes"
    return "the same graph, other notes in it" if a.computes == b.computes else "another graph"


def graph_relations(a: Card, b: Card) -> dict[str, str]:
    """How each graph of one bundle relates to that of the other."""
    return {"init_fn": graph_relation(a.init, b.init), "step_fn": graph_relation(a.step, b.step)}


def _order(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def compare(a: Card, b: Card) -> list[Difference]:
    """The fields in which two bundles differ; none where both are the same policy with the same proofs."""
    found: list[Difference] = []

    def add(field: str, one: Any, other: Any) -> None:
        if one != other:
            found.append(Difference(field=field, a=one, b=other))

    for what in ("joint_names", "command_names"):
        one, other = getattr(a.bundle, what), getattr(b.bundle, what)
        if sorted(one) == sorted(other):
            add(f"{what}: order", _order(one), _order(other))
        else:
            add(what, _order(tuple(n for n in one if n not in other)), _order(tuple(n for n in other if n not in one)))
    add("carry_size", a.bundle.carry_shape, b.bundle.carry_shape)
    add("joint_biases", a.bundle.joint_biases, b.bundle.joint_biases)
    add("graphs: inputs", _order(tuple(a.step.inputs)), _order(tuple(b.step.inputs)))
    for what in ("opset", "ir_version", "nodes", "weights", "bytes"):
        add(f"graphs: {what}", getattr(a.step, what), getattr(b.step, what))
    for what, relation in graph_relations(a, b).items():
        if relation != "the same bytes":
            add(f"digests: {what} ({relation})", a.digests[what], b.digests[what])
    add("state", a.state, b.state)
    if a.spec is None or b.spec is None:
        add("specification", "none" if a.spec is None else "ours", "none" if b.spec is None else "ours")
        return found
    flat = [flatten(_comparable(c.spec)) for c in (a, b) if c.spec is not None]
    for field in [*flat[0], *(k for k in flat[1] if k not in flat[0])]:
        add(field, flat[0].get(field), flat[1].get(field))
    for what in ("envelope", "self_test", "margins"):
        one, other = getattr(a.spec, what), getattr(b.spec, what)
        if one != other:
            words = ("none", "another") if not one else ("one", "none" if not other else "another")
            add(what, *words)
    return found


def _comparable(spec: PolicySpec) -> dict[str, Any]:
    """The specification without what is compared as a whole."""
    data = spec.replace(margins=None).to_json()
    del data["envelope"], data["self_test"], data["carry_size"]
    # one number for each joint, by its name
    for what in ("action_low_rad", "action_high_rad"):
        data[what] = dict(zip(spec.robot.joint_names, data[what], strict=True))
    return json.loads(json.dumps(data))
