"""The proof of export/proof.py, and in simulation the closed loop (closed_loop.py) and the margins."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from export.closed_loop import ENGINES, closed_loop
from export.compare import session
from export.errors import ExportError
from export.margins import MarginSettings, measure
from export.options import EPISODES, MARGIN_EPISODES
from export.proof import NO_SPEC, STEPS, Prover, Report, Stages
from export.recording import Recording
from ksim.config import Config
from ksim.environment import make_environment
from ksim.evaluate import Evaluation, JaxBatchPolicy, OnnxBatchPolicy, evaluate
from ksim.learning.checkpoint import Trained
from ksim.learning.policy import Policy
from robots.bundle import Bundle
from robots.spec import PolicySpec
from toolkit.errors import ToolkitError

# The envelope of inputs: whole episodes that lasted, and so much of those that ended in a fall.
UPRIGHT_S = 1.0


def recording_of(spec: PolicySpec, run: Evaluation) -> Recording:
    """What a recorded evaluation gave the policy; healthy are the episodes that lasted, and the first second of each.

    Args:
        spec: of the policy, for its control period.
        run: recorded.
    """
    assert run.inputs is not None and run.alive is not None
    early = np.arange(len(run.alive))[:, None] < round(UPRIGHT_S / spec.control_period_s)
    healthy = run.alive & (run.survived.astype(bool)[None] | early)
    # episode after episode, each to its end
    kept = run.alive.T.reshape(-1)
    starts = np.arange(kept.size) % len(run.alive) == 0
    rows = {name: np.swapaxes(v, 0, 1).reshape(-1, v.shape[-1])[kept] for name, v in run.inputs.items()}
    return Recording(inputs=rows, starts=starts[kept], healthy=healthy.T.reshape(-1)[kept])


def _loop(config: Config, policy: Any, engine: str, episodes: int, seed: int, environment: Any) -> Evaluation:
    return evaluate(config, policy, episodes=episodes, seed=seed, engine=engine, record=True, environment=environment)


def validate(
    bundle: Bundle,
    policy: Policy,
    config: Config,
    *,
    episodes: int = EPISODES,
    mjx_episodes: int | None = None,
    engines: Sequence[str] = ("mujoco",),
    margin_episodes: int = MARGIN_EPISODES,
    seed: int = 1,
    steps: int = STEPS,
    keep_going: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> Report:
    """Prove that a bundle is a policy.

    Args:
        bundle: the ONNX form, with a spec.
        policy: the JAX form.
        config: the configuration that the policy was trained with; its simulation gives the inputs.
        episodes: closed-loop episodes of each form.
        mjx_episodes: the same in MJX; as many as `episodes` by default.
        engines: those of the closed loop; the recorded inputs always come from MuJoCo C.
        margin_episodes: episodes of each value of the margins; 0 does not measure them. They are no proof: a policy
            may have any. Where something does not hold they are not measured.
        seed: seed of the simulation, the resets and the drawn inputs.
        steps: length of each sequence.
        keep_going: go on after a failure and list it in the report.
        log: called with one line per stage.

    Raises:
        ExportError: something does not hold and `keep_going` is false, or cannot be asked at all.
    """
    for what, value in (("episodes", episodes), ("mjx_episodes", 1 if mjx_episodes is None else mjx_episodes)):
        if value < 1:
            raise ExportError(f"{what}: got {value}, expected 1 or more")
    unknown = [e for e in engines if e not in ENGINES]
    if unknown or not engines:
        raise ExportError(f"engines: got {', '.join(unknown) or 'none'}, expected some of {', '.join(ENGINES)}")
    stages = Stages(keep_going, log)
    prover = Prover(bundle, policy.step, policy.init_carry(), steps=steps, seed=seed, stages=stages)
    if not prover.graphs():
        return prover.report()
    prover.ranges()

    log(f"closed loop in MuJoCo C, JAX policy: {episodes} episodes")
    # one environment for both: what is compiled for the first serves the second
    env = make_environment(config, episodes, "mujoco")
    jax_run = _loop(config, JaxBatchPolicy(policy), "mujoco", episodes, seed, env)
    recording = recording_of(prover.spec, jax_run)
    prover.recorded(recording)

    loops = []
    for engine in engines:
        if engine == "mujoco":
            truth, n, place = jax_run, episodes, env
        else:
            n = mjx_episodes or episodes
            log(f"closed loop in MJX, JAX policy: {n} episodes; compiling takes minutes without a GPU")
            place = make_environment(config, n, engine)
            truth = _loop(config, JaxBatchPolicy(policy), engine, n, seed, place)
        log(f"closed loop in {'MJX' if engine == 'mjx' else 'MuJoCo C'}, ONNX policy: {n} episodes")
        try:
            ours = _loop(config, OnnxBatchPolicy(bundle), engine, n, seed, place)
        except ToolkitError as error:  # an action that is not finite
            stages.fail(f"closed loop in {engine}: {error}")
            continue
        loops.append(closed_loop(ours, truth, prover.spec.control_period_s))
        for failure in loops[-1].failures():
            stages.fail(failure)

    prover.contracts(recording)
    report = prover.report(loops)
    if report.failures or not margin_episodes:
        return report
    log(f"margins in MuJoCo C: {margin_episodes} episodes of each value")
    margins = measure(bundle, config, MarginSettings(episodes=margin_episodes, seed=seed))
    return dataclasses.replace(report, margins=margins)


def latency_us(bundle: Bundle, runs: int = 500) -> dict[str, float]:
    """p50 and p99 of one step through ONNX Runtime on one thread of this machine [us]."""
    run = session(bundle.step_fn, "step_fn")
    feed = {i.name: np.zeros(i.shape, np.float32) for i in run.get_inputs()}
    taken = []
    for _ in range(runs + 50):
        begin = time.perf_counter()
        run.run(None, feed)
        taken.append(1e6 * (time.perf_counter() - begin))
    taken = taken[50:]  # the first calls allocate
    return {"p50": float(np.percentile(taken, 50)), "p99": float(np.percentile(taken, 99))}


def to_stderr(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def check_origin(bundle: Bundle, trained: Trained) -> None:
    """The bundle says that it was made from this checkpoint.

    Raises:
        ExportError: it was made from another one.
    """
    if bundle.spec is None:
        raise ExportError(NO_SPEC)
    for what in ("weights_digest", "config_digest"):
        got, expected = getattr(bundle.spec, what), getattr(trained.spec, what)
        if got != expected:
            raise ExportError(
                f"bundle: {what}: got {got[:12]}, expected the checkpoint's {expected[:12]}; "
                "name the checkpoint that it was exported from"
            )
    if bundle.spec.robot != trained.spec.robot:
        raise ExportError("bundle: its robot differs from the checkpoint's; name the checkpoint it was exported from")
