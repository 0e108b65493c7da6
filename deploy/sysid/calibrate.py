"""From motions to a calibration: fits a robot, and judges the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deploy.sysid.around import look_around
from deploy.sysid.calibration import Calibration, Touching, joints_of, scores_of, shared
from deploy.sysid.contacts import Contacts
from deploy.sysid.fit import (
    DAMPING,
    FLOOR_RAD,
    SMALL_RAD,
    Fit,
    Problem,
    Score,
    Search,
    first_guess,
    moving,
    rmse,
    sizes,
    solve,
)
from deploy.sysid.intervals import intervals
from deploy.sysid.kinds import FITTED
from deploy.sysid.lag import fit_lag
from deploy.sysid.motion import Motion, SysidError
from deploy.sysid.simulate import Parameters, Simulator
from deploy.sysid.state import State
from deploy.sysid.touch import Touch, lowest, touches
from robots.load import load_robot
from toolkit.words import count

# The search for a start looks at this much of each motion [s].
FIRST_S = 30.0
# and goes in steps of this [s], or the fit's own where that is longer.
FIRST_STEP_S = 0.004
# Rows as near to a touch as this bear its marks too [s].
AROUND_S = 0.5
# Where less than this share of a motion were left, its marks are not those of a contact: none of it is left out.
LEFT_LEAST = 0.3


def _cut(motion: Motion, seconds: float) -> Motion:
    rows = int(np.searchsorted(motion.time_s, seconds))
    if rows >= len(motion.time_s):
        return motion
    parts = {what: getattr(motion, what)[:rows] for what in ("time_s", "target", "position", "use")}
    parts["velocity"] = None if motion.velocity is None else motion.velocity[:rows]
    return dataclasses.replace(motion, **parts)


def _without(motions: Sequence[Motion], found: Sequence[Touch]) -> list[Motion]:
    """The motions without the rows that touch; one of which little would be left stays whole."""
    out = []
    for motion in motions:
        use = motion.use.copy()
        for touch in found:
            if touch.motion == motion.name:
                at = np.flatnonzero(touch.rows)
                near = np.searchsorted(motion.time_s[at], motion.time_s[:, None] + [-AROUND_S, AROUND_S])
                use &= near[:, 0] == near[:, 1]
        few = use.sum() < LEFT_LEAST * motion.use.sum()
        out.append(motion if few else dataclasses.replace(motion, use=use))
    return out


def declared(motions: Sequence[Motion], contacts: Contacts) -> list[Motion]:
    """The motions without the stretches that are declared not to count."""
    out = []
    for motion in motions:
        use = motion.use.copy()
        for start, end in (contacts.leave_out or {}).get(motion.name, ()):
            use &= (motion.time_s < start) | (motion.time_s > end)
        if not use.any():
            raise SysidError(f"motion {motion.name}: leave_out leaves no row of it; expected some; do not name it")
        out.append(dataclasses.replace(motion, use=use))
    return out


def _touching(simulator: Simulator, p: Parameters) -> dict[str, float]:
    """Share of each motion's rows in which the simulated arm is at the declared plane."""
    if simulator.contacts.plane is None:
        return {}
    shown = simulator.run([p])
    return {
        name: float(np.mean(lowest(simulator, values[0] - p.offset) < p.plane_m + 0.001))
        for name, values in shown.items()
    }


def _told(
    motions: Sequence[Motion], published: Parameters, names: Sequence[str], say: Callable[[str], None]
) -> Parameters:
    """The published model with the gains that the controllers were told while the motions were recorded.

    Raises:
        SysidError: they were told other ones from motion to motion.
    """
    own = np.stack([published.kp, published.kd])
    gains = {m.name: own if m.gains is None else m.gains for m in motions}
    first = gains[motions[0].name]
    for name, told in gains.items():
        apart = [n for j, n in enumerate(names) if (told[:, j] != first[:, j]).any()]
        if apart:
            raise SysidError(
                f"motion {name}: joint {apart[0]} has other gains than in {motions[0].name}; expected one set of gains "
                "in all logs; fit them apart"
            )
    other = [n for j, n in enumerate(names) if (first[:, j] != own[:, j]).any()]
    if other:
        say(f"gains in the logs are not the robot's: {', '.join(other)[:200]}; what is found is of those in the logs")
    return published.replace(kp=first[0], kd=first[1])


def calibrate(
    robot: str | Path,
    seen: Sequence[Motion],
    unseen: Sequence[Motion] = (),
    *,
    contacts: Contacts | None = None,
    kinds: Sequence[str] = FITTED,
    held: bool = False,
    leave_out: bool = True,
    timestep_s: float = 0.002,
    iterations: int = 30,
    threads: int = 1,
    begin: Parameters | None = None,
    whole: bool = False,
    state: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Fit a robot to `seen` motions and judge the result on them and on `unseen` ones.

    Args:
        robot: a built-in robot's name or a robot folder.
        seen: motions to fit.
        unseen: motions to judge by.
        contacts: what the arm may touch.
        kinds: of parameters to fit, of `KINDS`.
        held: a floating base was fixed to the world.
        leave_out: rows in which the arm seems to touch what is not declared are not fitted; the result is judged on
            them all the same.
        timestep_s: physics step [s].
        iterations: steps of each search at most.
        threads: of the simulation.
        begin: where the search begins; by default it looks around the published model.
        whole: exact slopes in a robot of one limb, see Problem.
        state: a file that keeps where the fit stands.
        say: hears of the progress.
    """
    contacts = contacts or Contacts()
    seen, unseen = declared(seen, contacts), declared(unseen, contacts)
    spec = load_robot(robot)
    plane = contacts.plane
    kinds = list(kinds)
    if plane is not None and plane.fit and "plane_m" not in kinds:
        kinds.append("plane_m")
    published = start = _told(seen, Parameters.of(spec, plane), spec.joint_names, say)
    if {"kp", "mass"} <= set(kinds):
        raise SysidError(
            "fit: got kp and mass, of which motions show the ratio alone; expected one of them; fit mass where the "
            "gains are known, as told or weighed"
        )
    if "kd" in kinds and "damping" not in kinds:
        # motions tell the two apart only where the torque is at its limit
        start = published.replace(kd=published.kd + published.damping, damping=np.zeros_like(published.kd))
    about = {
        "robot": spec.source,
        "motions": [(m.name, m.digest, len(m.time_s)) for m in seen],
        "contacts": contacts.to_dict(),
        "begin": None if begin is None else {k: np.asarray(v).tolist() for k, v in vars(begin).items()},
        "how": [kinds, held, leave_out, timestep_s, iterations, whole],
    }
    kept = State(state, about)

    def simulator(motions: Sequence[Motion], declared: Contacts = contacts, step_s: float = timestep_s) -> Simulator:
        return Simulator(robot, motions, timestep_s=step_s, contacts=declared, held=held, threads=threads)

    def search(stage: str, problem: Problem, begin: Parameters, enough: float = 1e-4) -> Fit:
        there = kept.get(stage)
        if there is not None and there.cost:
            say(f"{stage}: goes on after step {len(there.cost) - 1}, as {state} has it")
        return solve(problem, there or begin, iterations, say, lambda now: kept.put(stage, now), enough=enough)

    length = sum(m.time_s[-1] for m in seen)
    say(f"{count(len(seen), 'motion')}, {length:.0f} s, of {spec.name}; the published model first")
    still = [name for name, moves in zip(spec.joint_names, moving(seen), strict=True) if not moves]
    if still:
        say(f"stand still in all motions, and are not fitted: {', '.join(still)}")
    nothing = Contacts()
    scale = rmse(simulator(seen, nothing), published)

    start = begin or start
    problem = Problem(simulator(seen), start, kinds, scale, whole=whole)
    if begin is None and kept.get("first") is None:
        short = simulator([_cut(m, FIRST_S) for m in seen], step_s=max(FIRST_STEP_S, timestep_s))
        begin = first_guess(Problem(short, start, kinds, scale, whole=whole), say)
        x = problem.vector(begin)
        kept.put("first", Search(x=x, damping=np.full(len(x), DAMPING)))
    # another search follows: this one need not be exact
    fit = search("first", problem, start, 0.02)
    found = touches(simulator(seen), fit.parameters)
    everything, apart = seen, set[str]()
    if found and leave_out:
        seen = _without(seen, found)
        apart = {m.name for m, whole in zip(seen, everything, strict=True) if m.use.sum() < whole.use.sum()}
    if apart:
        say(f"contacts that are not declared, in {', '.join(sorted(apart))[:200]}: fitted again without their rows")
        problem = Problem(simulator(seen), start, kinds, scale, whole=whole)
        fit = search("again", problem, fit.parameters, 0.02)
    if any(m.velocity is not None for m in seen):
        say("with velocities: positions and velocities by the noise that is left of them")
        left = sizes(problem.simulator, fit.parameters)
        squares = np.array([v**2 for v in left.values()])
        noise = np.sqrt(np.nansum(squares, axis=0) / np.maximum(np.isfinite(squares).sum(axis=0), 1))
        scales = ({m.name: part for m in seen} for part in noise)
        problem = Problem(
            problem.simulator, start, kinds, next(scales), speed_scale=next(scales), least=FLOOR_RAD, whole=whole
        )
        fit = search("velocities", problem, fit.parameters)
    else:
        # the sum of squares looks most at what the model cannot do; so weighed, it is the sum of the ratios, the score
        say("positions by the error that is left of them")
        left = rmse(problem.simulator, fit.parameters)
        both = {n: np.sqrt(np.maximum(scale[n], SMALL_RAD) * np.maximum(left[n], SMALL_RAD)) for n in left}
        problem = Problem(problem.simulator, start, kinds, both, whole=whole)
        fit = search("ratios", problem, fit.parameters, 1e-3)
    if "play" in kinds:
        fit = look_around(problem, fit, search, say)
    sure = intervals(problem, fit)
    lag = fit_lag(seen)
    p = fit.parameters

    def judge(motions: Sequence[Motion], fitted: Sequence[Motion]) -> dict:
        if not motions:
            return {}
        ours = simulator(motions)
        score = Score(rmse_rad=rmse(ours, p), published_rad=rmse(simulator(motions, nothing), published))
        out = {m.name: float(np.mean(~m.use)) for m in fitted}
        digests = {m.name: m.digest for m in motions}
        return scores_of(spec.joint_names, score, lag.rmse(motions), digests, touching=_touching(ours, p), left_out=out)

    say("judging")
    if apart:  # as the fit without them shows it
        found = touches(simulator(everything), p) or found
    more = touches(simulator(unseen), p) if unseen else []
    height, delay = (shared(what, problem, fit, sure) for what in ("plane_m", "delay_s"))
    one_clock = any(m.one_clock for m in seen)
    if plane is not None:
        contacts = dataclasses.replace(
            contacts,
            plane=dataclasses.replace(plane, height_m=height.value, friction=p.plane_friction, give_m_n=p.plane_give),
        )
    return Calibration(
        robot=spec.name,
        model=spec.source,
        timestep_s=timestep_s,
        fitted=tuple(kinds),
        joints=joints_of(spec, problem, fit, sure),
        delay_s=dataclasses.replace(delay, known=delay.known and not one_clock),
        one_clock=one_clock,
        converged=fit.converged,
        held=held,
        contacts=contacts,
        plane_m=height,
        touching=tuple(
            Touching(
                motion=t.motion, what=t.what, level=t.level, share=t.share, left_out=t.motion in apart, geoms=t.geoms
            )
            for t in [*found, *more]
        ),
        seen=judge(everything, seen),
        unseen=judge(unseen, unseen),
    )
