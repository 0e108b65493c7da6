"""What the proof of an ONNX policy runs on: a user's own recording, or inputs drawn about the home pose."""

from __future__ import annotations

import dataclasses
import itertools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.onnx_file import Network, OnnxFile
from export.onnx_plan import Plan
from export.onnx_reference import Episode
from export.proof import SELF_TEST_TOLERANCE
from export.recording import Recording
from robots.inputs import ACCELEROMETER, BY_NAME, GRAVITY_INPUT, GYROSCOPE, JOINT_ANGLES, JOINT_VELOCITIES
from robots.rotation import GRAVITY_M_S2

OBS, ACTIONS, STARTS = "obs", "actions", "starts"
# Another machine adds float32 sums in another order.
PAIR_LIMIT = SELF_TEST_TOLERANCE
EPISODES, LENGTH = 40, 250


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A user's recording.

    Attributes:
        obs: what the policy was given, (T, N).
        actions: what it answered, before any clip or scale, (T, A).
        starts: where an episode begins, (T,).
        inputs: the inputs themselves by .kinfer name, (T, k), where they were recorded too.
    """

    obs: np.ndarray
    actions: np.ndarray
    starts: np.ndarray
    inputs: Mapping[str, np.ndarray]


def read_pairs(path: str | Path, plan: Plan, file: OnnxFile) -> Pairs:
    """Read obs, actions, and where there are any starts and inputs from an .npz file.

    Raises:
        ExportError: something is missing, or of another size than the policy's.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an .npz file of obs and actions; check how it is written")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: np.asarray(data[name]) for name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ExportError(
            f"{path}: not an .npz file of numbers ({' '.join(str(error).split())[:120]}); write it with "
            "np.savez(FILE, obs=..., actions=...)"
        ) from error
    missing = [name for name in (OBS, ACTIONS) if name not in arrays]
    if missing:
        raise ExportError(f"{path}: no {' and no '.join(missing)}; it has {', '.join(arrays) or 'nothing'}; add them")
    sizes = {a.name: a.shape[0] for a in plan.spec.inputs}
    unknown = sorted(set(arrays) - {OBS, ACTIONS, STARTS, *sizes})
    if unknown:
        raise ExportError(
            f"{path}: {unknown[0]!r} is none of {', '.join((OBS, ACTIONS, STARTS, *sizes))}; rename it, or leave it out"
        )
    steps = len(arrays[OBS]) if arrays[OBS].ndim else 0
    widths = {OBS: file.size, ACTIONS: file.count, **sizes}
    for name, width in widths.items():
        if name not in arrays:
            continue
        rows: np.ndarray = arrays[name]
        if rows.ndim == 3 and rows.shape[1] == 1:  # (T, 1, k), of one robot
            rows = rows[:, 0]
        if rows.dtype.kind not in "fiu" or rows.shape != (steps, width) or not steps or not np.isfinite(rows).all():
            raise ExportError(
                f"{path}: {name}: got shape {list(rows.shape)} {rows.dtype}, expected [{steps or 'T'}, {width}] finite "
                "numbers, one robot's steps in order"
            )
        arrays[name] = rows.astype(np.float32)
    starts = arrays[STARTS] if STARTS in arrays else np.arange(steps) == 0
    if starts.shape != (steps,) or starts.dtype.kind not in "biuf" or not starts[0]:
        raise ExportError(
            f"{path}: {STARTS}: got shape {list(starts.shape)}, expected [{steps}] of true or false, true first and "
            "wherever an episode begins"
        )
    given = {name: arrays[name] for name in sizes if name in arrays}
    return Pairs(obs=arrays[OBS], actions=arrays[ACTIONS], starts=starts.astype(bool), inputs=given)


def nominal(plan: Plan) -> dict[str, np.ndarray]:
    """A robot that stands at home: each input, (k,)."""
    still = {
        JOINT_ANGLES: np.asarray(plan.spec.robot.column("home_rad")),
        GRAVITY_INPUT: np.asarray([0.0, 0.0, -GRAVITY_M_S2]),
        ACCELEROMETER: np.asarray([0.0, 0.0, GRAVITY_M_S2]),
        "command": np.clip(0.0, *(np.asarray([getattr(c, e) for c in plan.spec.commands]) for e in ("low", "high"))),
    }
    return {a.name: still.get(a.name, np.zeros(a.shape)).astype(np.float32) for a in plan.spec.inputs}


def _inputs_of(pairs: Pairs, plan: Plan) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """(inputs by name, those that the recording does not show): as recorded, else read back from the observation."""
    steps = len(pairs.obs)
    out = {name: np.tile(value, (steps, 1)) for name, value in nominal(plan).items()}
    seen = set(pairs.inputs)
    newest = 0
    if plan.frame is not None and plan.frame.order == "oldest_first":
        newest = plan.frame_width * (plan.frame.length - 1)
    for term in plan.terms:
        at = newest
        if term.history is not None and term.history.order == "oldest_first":
            at += term.width * (term.history.length - 1)
        newest += term.size
        if term.source not in out or term.source in pairs.inputs or not term.scale.all():
            continue
        values = (pairs.obs[:, at : at + term.width] / term.scale + term.offset) * term.divisor
        out[term.source][:, list(term.index)] = values
        seen.add(term.source)
    return out | dict(pairs.inputs), frozenset(out) - seen


def compare_pairs(pairs: Pairs, inputs: Mapping[str, np.ndarray], plan: Plan, file: OnnxFile) -> dict[str, float]:
    """The file and the description against a recording: greatest difference of observation and action, as a share.

    Raises:
        ExportError: the file gives other actions, or the description other observations.
    """
    network = Network(file, original=True)
    worst = {"obs_error": 0.0, "action_error": 0.0}
    episode = Episode(plan, network)
    for t, start in enumerate(pairs.starts):
        if start:
            episode = Episode(plan, network)
        built = episode.observe({name: rows[t] for name, rows in inputs.items()})
        apart = np.abs(built - pairs.obs[t]) / np.maximum(1.0, np.abs(pairs.obs[t]))
        if not apart.max() <= PAIR_LIMIT:
            i = int(apart.argmax())
            raise ExportError(
                f"recorded obs, step {t}, value {i}: got {pairs.obs[t, i]:.6g}, the description makes {built[i]:.6g} "
                f"({_whose(plan, i)}); expected the same within {PAIR_LIMIT:g}; correct the term, or {STARTS} if an "
                "episode begins there"
            )
        output, episode.states = network(pairs.obs[t], episode.states)
        off = np.abs(output - pairs.actions[t]) / np.maximum(1.0, np.abs(pairs.actions[t]))
        if not off.max() <= PAIR_LIMIT:
            i = int(off.argmax())
            raise ExportError(
                f"recorded actions, step {t}, value {i}: got {pairs.actions[t, i]:.6g}, {file.path.name} gives "
                f"{output[i]:.6g}; expected the same within {PAIR_LIMIT:g}; record the output before clip and scale, "
                "without exploration noise, of this very file"
            )
        episode.end_step(pairs.actions[t])
        worst["obs_error"] = max(worst["obs_error"], float(apart.max()))
        worst["action_error"] = max(worst["action_error"], float(off.max()))
    return worst


def _whose(plan: Plan, i: int) -> str:
    """Which term a value of the observation is of."""
    i %= plan.frame_width
    for term in plan.terms:
        if i < term.size:
            return f"{term.label}, element {i % term.width}"
        i -= term.size
    raise AssertionError


def recording_of(pairs: Pairs, plan: Plan) -> Recording:
    """A user's recording as the proof takes it.

    Raises:
        ExportError: an input is not what a robot can have.
    """
    inputs, unseen = _inputs_of(pairs, plan)
    bounds = [*np.flatnonzero(pairs.starts), len(pairs.starts)]
    episodes = [{name: rows[a:b] for name, rows in inputs.items()} for a, b in itertools.pairwise(bounds)]
    return dataclasses.replace(Recording.of_episodes(plan.spec, episodes), unseen=unseen)


def drawn_recording(plan: Plan, seed: int) -> Recording:
    """Episodes that begin at home and wander: for a proof, and no picture of any training, so all is unseen."""
    rng, still = np.random.default_rng(seed), nominal(plan)
    steps = EPISODES * LENGTH
    starts = np.arange(steps) % LENGTH == 0
    spread = {JOINT_ANGLES: 0.3, JOINT_VELOCITIES: 1.0, GYROSCOPE: 0.3, ACCELEROMETER: 1.0}
    grown = np.minimum(1.0, (np.arange(steps) % LENGTH) / 50.0)[:, None]
    out: dict[str, np.ndarray] = {}
    for array in plan.spec.inputs:
        name, size = array.name, array.shape[0]
        low, high = (np.resize(end, size) for end in (array.low, array.high))
        if name == "command":
            rows = np.repeat(rng.uniform(low, high, (EPISODES, size)), LENGTH, axis=0)
        elif name == GRAVITY_INPUT:
            rows = still[name] + grown * rng.normal(0.0, 1.0, (steps, 3)) + rng.normal(0.0, 0.1, (steps, 3))
            rows *= GRAVITY_M_S2 / np.linalg.norm(rows, axis=1, keepdims=True)
        else:
            rows = still[name] + (grown + 0.05) * spread[name] * rng.normal(0.0, 1.0, (steps, size))
        out[name] = np.clip(rows, low, high).astype(np.float32)
    return Recording(inputs=out, starts=starts, healthy=np.ones(steps, bool), unseen=frozenset(BY_NAME))
