"""Events: what acts, how strong, how long, how often."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim import events
from ksim.curriculum import LinearScale

STEPS = 400  # 8 s at 20 ms


@pytest.fixture(scope="module")
def run(posed):
    """`run(term, level)`: (wrench (steps, 6), kick (steps, 6), stalled (steps,)) of one long episode."""
    state = posed()

    def happen(term, level=1.0, seed=0):
        def step(carry, key):
            now = dataclasses.replace(state, key=key, level=jnp.asarray(level))
            effect, carry = term.happen(now, carry)
            return carry, jax.tree.map(jnp.asarray, effect)

        keys = jax.random.split(jax.random.key(seed), STEPS)
        _, effects = jax.jit(lambda keys: jax.lax.scan(step, term.initial_carry(jax.random.key(seed)), keys))(keys)
        return tuple(np.asarray(v) for v in effects)

    return happen


def spells(active):
    """(steps that each spell lasts, steps between their beginnings)."""
    starts = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(int)])) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate([active.astype(int), [0]])) == -1)
    return ends - starts + 1, np.diff(starts)


def lasting(kind, **fields):
    return kind(duration_s=(0.1, 0.1), interval_s=(0.5, 0.5), **fields)


def test_a_force_push_is_horizontal_constant_while_it_lasts_and_comes_again(run):
    wrench, kick, stalled = run(lasting(events.ForcePush, force_n=80.0))
    assert not kick.any() and not stalled.any() and not wrench[:, 2:].any()
    active = (wrench != 0).any(axis=1)
    lengths, gaps = spells(active)
    assert set(lengths[:-1].tolist()) == {5}  # 0.1 s of 20 ms
    # the pause of 0.5 s counts from the beginning; the step at which it is over begins the next
    assert set(gaps.tolist()) <= {26, 27} and len(gaps) > 10
    size = np.linalg.norm(wrench[active], axis=1)
    assert size.max() <= 80.0 and size.max() > 50.0 and size.min() < 40.0
    start = np.flatnonzero(active)[0]
    assert (wrench[start : start + 5] == wrench[start]).all()
    angles = np.arctan2(wrench[active][:, 1], wrench[active][:, 0])
    assert angles.min() < -1.0 and angles.max() > 1.0


def test_a_torque_push_turns_about_any_axis_and_pulls_nowhere(run):
    wrench, kick, stalled = run(lasting(events.TorquePush, torque_nm=12.0))
    assert not kick.any() and not stalled.any() and not wrench[:, :3].any()
    active = wrench.any(axis=1)
    assert set(spells(active)[0][:-1].tolist()) == {5}
    size = np.linalg.norm(wrench[active], axis=1)
    assert 8.0 < size.max() <= 12.0 + 1e-5
    assert (np.abs(wrench[active][:, 3:]).max(axis=0) > 2.0).all()


def test_a_velocity_push_acts_at_one_step_only(run):
    term = events.VelocityPush(lin_vel_m_s=0.8, ang_vel_rad_s=2.0, duration_s=(0.1, 0.1), interval_s=(0.5, 0.5))
    wrench, kick, stalled = run(term)
    assert not wrench.any() and not stalled.any()
    active = kick.any(axis=1)
    assert set(spells(active)[0].tolist()) == {1} and active.sum() > 10
    assert not kick[:, 2:5].any()  # neither upwards nor over
    assert np.linalg.norm(kick[:, :2], axis=1).max() <= 0.8 and np.abs(kick[:, 5]).max() <= 2.0
    assert np.linalg.norm(kick[active][:, :2], axis=1).max() > 0.5 and kick[:, 5].min() < 0 < kick[:, 5].max()


def test_a_lasting_moment_is_the_same_for_the_whole_episode_and_differs_between_episodes(run):
    term = events.LastingMoment(torque_nm=3.0)
    wrench, kick, stalled = run(term)
    assert not kick.any() and not stalled.any() and not wrench[:, :3].any()
    assert (wrench == wrench[0]).all() and 0 < np.abs(wrench[0, 3:]).max() <= 3.0
    assert not np.array_equal(run(term, seed=1)[0][0], wrench[0])


def test_a_stall_holds_the_command_for_its_length_and_pushes_nobody(run):
    term = events.Stall(duration_s=(0.1, 0.1), interval_s=(1.0, 1.0))
    wrench, kick, stalled = run(term)
    assert not wrench.any() and not kick.any()
    lengths, gaps = spells(stalled)
    assert set(lengths[:-1].tolist()) == {5} and len(lengths) > 4
    assert set(gaps.tolist()) <= {51, 52}


@pytest.mark.parametrize(
    "term",
    [
        events.ForcePush(scale=LinearScale(low=0.25, high=1.0)),
        events.TorquePush(scale=LinearScale(low=0.25, high=1.0)),
        events.VelocityPush(scale=LinearScale(low=0.25, high=1.0)),
        events.LastingMoment(scale=LinearScale(low=0.25, high=1.0)),
    ],
    ids=lambda t: type(t).__name__,
)
def test_a_push_follows_the_level(run, term):
    full, weak = run(term, 1.0), run(term, 0.0)
    for a, b in zip(full[:2], weak[:2], strict=True):
        np.testing.assert_allclose(b, 0.25 * a, rtol=1e-4, atol=1e-6)
    assert full[0].any() or full[1].any()


def test_lengths_and_pauses_are_drawn_anew_each_time(run):
    term = events.ForcePush(duration_s=(0.05, 0.4), interval_s=(0.5, 1.5))
    lengths, gaps = spells(run(term)[0].any(axis=1))
    assert lengths.min() >= 2 and lengths.max() <= 21 and len(set(lengths.tolist())) > 2
    assert gaps.min() >= 25 and gaps.max() <= 77 and len(set(gaps.tolist())) > 2


def test_the_first_push_comes_after_three_tenths_of_a_second_at_least():
    waits = [float(events.ForcePush().initial_carry(jax.random.key(i))["next_s"]) for i in range(40)]
    assert min(waits) >= 0.3 and max(waits) <= 2.5 and math.isfinite(sum(waits))
