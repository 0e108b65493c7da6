"""The same policy once more, in numpy around the file itself: what the composed graph is proven against.

It shares the plan with the graph, and no arithmetic: an observation is built as training builds it, step by step from
the start of an episode, with lists for histories and a count of steps for clocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from export.compare import NUDGES, Trace, differences, nudged
from export.function import UNUSED
from export.onnx_compose import CLOCK, FRAME, STARTED, history_name, layout
from export.onnx_file import Network, OnnxFile
from export.onnx_plan import Plan
from export.onnx_spec import CONSTANT, LAST_ACTION, PHASE, History
from robots.spec import CarrySpec

_F = np.float32


def _clipped(value: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return np.clip(value, _F(ends[0]), _F(ends[1]))


class Episode:
    """One episode of a policy: what it remembers, as training has it."""

    def __init__(self, plan: Plan, network: Network) -> None:
        self.plan, self.network = plan, network
        self.steps = 0
        self.counts = [0] * len(plan.cycles)  # of each clock, since its start
        self.states = network.start()
        self.last = np.zeros(len(plan.driven), _F)
        self.past: dict[str, deque[np.ndarray]] = {}

    def _with_history(self, name: str, value: np.ndarray, history: History) -> np.ndarray:
        past = self.past.get(name)
        if past is None:
            first = value if history.fill == "first" else np.zeros_like(value)
            past = self.past[name] = deque([first] * history.length, maxlen=history.length)
        past.append(value)
        return np.concatenate(past if history.order == "oldest_first" else list(past)[::-1])

    def _raw(self, i: int, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        term = self.plan.terms[i]
        if term.source == LAST_ACTION:
            return self.last
        if term.source == CONSTANT:
            return np.zeros(term.width, _F)
        if term.source != PHASE:
            return np.asarray(inputs[term.source], _F)[list(term.index)]
        added, cycle = self.plan.cycles[term.clock]
        # float32 here too: where a cycle ends, 1 and a hair less than 1 are far apart
        passed = _F(self.counts[term.clock] * added % cycle) / _F(cycle) + np.asarray(term.starts, _F)
        share = (passed - np.floor(passed)).astype(np.float64)
        forms: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "sin": lambda s: np.sin(2.0 * np.pi * s),
            "cos": lambda s: np.cos(2.0 * np.pi * s),
            "phase": lambda s: s,
        }
        return np.concatenate([forms[form](share) for form in term.form]).astype(_F)

    def observe(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The observation of this step, (N,); once a step."""
        parts = []
        for i, term in enumerate(self.plan.terms):
            value = (self._raw(i, inputs) / _F(term.divisor) - term.offset.astype(_F)).astype(_F)
            if term.clip is not None:
                value = _clipped(value, term.clip)
            value = value * term.scale.astype(_F)
            parts.append(self._with_history(history_name(i), value, term.history) if term.history else value)
        out = np.concatenate(parts)
        if self.plan.frame is not None:
            out = self._with_history(FRAME, out, self.plan.frame)
        return out if self.plan.clip is None else _clipped(out, self.plan.clip)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The targets (joints,) [rad] of an observation; ends the step."""
        output, self.states = self.network(observation, self.states)
        self.end_step(output)
        return self.targets()

    def end_step(self, output: np.ndarray) -> None:
        """The policy said this."""
        output = np.asarray(output, _F)
        clip = self.plan.action_clip
        self.last = output if clip is None else _clipped(output, clip)
        self.steps += 1
        self.counts = [count + 1 for count in self.counts]

    def targets(self) -> np.ndarray:
        """What the last action asks of each joint, (joints,) [rad]."""
        plan = self.plan
        out = plan.held.astype(_F)
        out[list(plan.driven)] = self.last * plan.scale.astype(_F) + plan.offset.astype(_F)
        if plan.target_low is not None and plan.target_high is not None:
            out = np.clip(out, plan.target_low.astype(_F), plan.target_high.astype(_F))
        return out

    def carry(self, parts: tuple[CarrySpec, ...]) -> np.ndarray:
        """What the graph should have in its carry now."""
        files = iter(self.states)
        rows = []
        for part in parts:
            if part.name == LAST_ACTION:
                value = self.last
            elif part.name == CLOCK:
                counted = zip(self.counts, self.plan.cycles, strict=True)
                value = np.asarray([count * added % cycle for count, (added, cycle) in counted], _F)
            elif part.name == STARTED:
                value = np.asarray([float(self.steps > 0)], _F)
            elif part.name == UNUSED:
                value = np.zeros(1, _F)
            elif part.name == FRAME or part.name.startswith("history."):
                past = self.past.get(part.name)
                value = np.zeros(part.shape, _F) if past is None else np.stack(list(past)[1:])
            else:
                value = next(files)
            rows.append(np.asarray(value, _F).reshape(-1))
        return np.concatenate(rows)

    def resume(self, parts: tuple[CarrySpec, ...], carry: np.ndarray) -> None:
        """Go on from a carry, as `carry` gives it."""
        ends = np.cumsum([part.size for part in parts])
        rows = {part.name: carry[end - part.size : end] for part, end in zip(parts, ends, strict=True)}
        self.states = [
            rows[part.name].reshape(state.shape).astype(state.dtype)
            for part, state in zip(parts, self.states, strict=False)
        ]
        self.last = rows.get(LAST_ACTION, self.last)
        self.steps = int(STARTED not in rows or rows[STARTED][0] > 0.5)
        # of a share of the cycle in lowest terms each count of parts is reached at one step
        self.counts = [
            round(float(count)) * pow(added, -1, cycle) % cycle
            for count, (added, cycle) in zip(rows.get(CLOCK, ()), self.plan.cycles, strict=True)
        ]
        for part in parts if self.steps else ():
            if part.name == FRAME or part.name.startswith("history."):
                earlier = list(rows[part.name].reshape(part.shape))
                self.past[part.name] = deque([earlier[0], *earlier], maxlen=len(earlier) + 1)


class FileReference:
    """The reference of a proof, as export.compare.Reference is for JAX policies.

    Args:
        plan: what goes on around the file.
        file: the policy.
    """

    def __init__(self, plan: Plan, file: OnnxFile) -> None:
        self.plan, self.parts = plan, layout(plan, file)
        # float64 is proven in float32; how far the two are apart is a figure of its own
        self.network = Network(file, original=not file.double)
        self.start = Episode(plan, self.network).carry(self.parts)

    def run(self, inputs: Mapping[str, np.ndarray], resets: np.ndarray, moved: np.ndarray | None = None) -> Trace:
        """Step after step through a sequence, (T, k) by name.

        Args:
            inputs: by name.
            resets: (T,): a new episode begins at this step.
            moved: of the carry; states and the last action are moved by it, what is counted or remembered is not.
        """
        episode = Episode(self.plan, self.network)
        actions, before, after = [], [], []
        for t, reset in enumerate(resets):
            if reset:
                episode = Episode(self.plan, self.network)
            if moved is not None:
                self._move(episode, moved[t])
            before.append(episode.carry(self.parts))
            actions.append(episode.act(episode.observe({name: rows[t] for name, rows in inputs.items()})))
            after.append(episode.carry(self.parts))
        return Trace(actions=np.stack(actions), carries=np.stack(after), before=np.stack(before))

    def moved(self, inputs: Mapping[str, np.ndarray], before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As export.compare.Reference has it: how far each step's action and carry move with all that it is given."""
        rng = np.random.default_rng(0)
        given = {name: np.asarray(value, _F) for name, value in inputs.items()}
        truth = self._steps(given, before)
        far = [np.zeros(np.shape(value)) for value in truth]
        for _ in range(NUDGES):
            rows, carry = (
                {name: nudged(value, rng) for name, value in given.items()},
                nudged(np.asarray(before, _F), rng),
            )
            other = self._steps(rows, carry)
            far = [np.maximum(f, differences(a, b)) for f, a, b in zip(far, other, truth, strict=True)]
        return far[0], far[1]

    def _steps(self, inputs: Mapping[str, np.ndarray], before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(actions, carries) of steps that each begin with a carry of their own."""
        actions, after = [], []
        for t, carry in enumerate(before):
            episode = Episode(self.plan, self.network)
            episode.resume(self.parts, carry)
            actions.append(episode.act(episode.observe({name: rows[t] for name, rows in inputs.items()})))
            after.append(episode.carry(self.parts))
        return np.stack(actions), np.stack(after)

    def _move(self, episode: Episode, shift: np.ndarray) -> None:
        at = 0
        states = []
        for part in self.parts:
            mine = shift[at : at + part.size].reshape(part.shape)
            at += part.size
            if len(states) < len(episode.states):  # they come first
                states.append(episode.states[len(states)] + mine)
            elif part.name == LAST_ACTION:
                episode.last = episode.last + mine.astype(_F)
        episode.states = states

    def check(self, inputs: Mapping[str, np.ndarray], resets: np.ndarray) -> tuple[FileReference, float]:
        """It is called one by one as it is."""
        return self, 0.0
