"""The limits of the comparison, on functions whose rounding is known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from export.compare import ERROR_LIMIT, Reference, compare

STEPS = 300
INPUTS = {"u": np.linspace(-1, 1, STEPS, dtype=np.float32)[:, None]}
START = np.float32([0.3, 0.6])


class Other(Reference):
    """Stands for the ONNX form: a function that can begin each step with a carry that it is given."""

    def run(self, inputs, resets, before=None):
        if before is None:
            return super().run(inputs, resets)
        own = super().run(inputs, resets)
        rows = [self._step({k: v[t] for k, v in inputs.items()}, before[t]) for t in range(len(resets))]
        actions, carries = (np.stack([np.asarray(row[i]) for row in rows]) for i in range(2))
        return type(own)(actions=actions, carries=carries, before=before)


def doubling(inputs, carry):
    """A carry that doubles any difference at each step; the action does not see it."""
    return inputs["u"], 3.9 * carry * (1.0 - carry)


def otherwise(inputs, carry):
    """The same function with another order of operations."""
    return inputs["u"], 3.9 * carry - 3.9 * carry * carry


def wrong(inputs, carry):
    """A weight is off by a thousandth."""
    return inputs["u"], 3.9039 * carry * (1.0 - carry)


def forgetting(inputs, carry):
    """A carry that forgets."""
    return inputs["u"], 0.5 * carry + jnp.tanh(inputs["u"])


def resets(every: int) -> np.ndarray:
    return np.arange(STEPS) % every == 0


def test_a_carry_that_amplifies_rounding_is_held_to_what_rounding_does_to_it():
    found = compare(Other(otherwise, START), Reference(doubling, START), INPUTS, resets(STEPS))
    assert found.step_carry_error < 1e-6 and found.action_error == 0.0
    assert found.carry_error > 0.1, "apart by much more than 1e-5"
    assert found.carry_limit > 0.1 and found.of_limit <= 1.2
    assert found.limits_told.startswith(", carried carry ")


def test_an_action_that_shows_such_a_carry_is_held_to_the_same():
    def shown(function):
        return lambda inputs, carry: (0.1 * carry[:1], function(inputs, carry)[1])

    found = compare(Other(shown(otherwise), START), Reference(shown(doubling), START), INPUTS, resets(STEPS))
    assert found.step_action_error < 1e-6 and found.action_error > 0.01
    assert found.action_limit > 0.01 and found.of_limit <= 1.2
    assert ", carried action " in found.limits_told
    found = compare(Other(shown(wrong), START), Reference(shown(doubling), START), INPUTS, resets(STEPS))
    assert found.action_limit == ERROR_LIMIT and found.of_limit > 10.0


def test_on_extreme_inputs_a_step_has_a_limit_and_what_is_carried_has_none():
    def shown(function):
        return lambda inputs, carry: (0.1 * carry[:1], function(inputs, carry)[1])

    right, reference = Other(shown(otherwise), START), Reference(shown(doubling), START)
    found = compare(right, reference, INPUTS, resets(STEPS), carry_limited=False)
    assert found.action_error > 0.01 and found.of_limit < 0.1
    found = compare(Other(shown(wrong), START), reference, INPUTS, resets(STEPS), carry_limited=False)
    assert found.of_limit > 10.0


def test_a_wrong_weight_is_found_in_one_step_whatever_the_carry_amplifies():
    found = compare(Other(wrong, START), Reference(doubling, START), INPUTS, resets(STEPS))
    assert found.step_carry_error > 1e-4 and found.of_limit > 10.0


def test_a_carry_that_forgets_keeps_the_limit_of_all_else():
    found = compare(Other(forgetting, START), Reference(forgetting, START), INPUTS, resets(50))
    assert found.carry_limit == ERROR_LIMIT and found.of_limit < 0.1 and found.limits_told == ""


def test_what_is_added_to_the_carry_before_each_step_is_in_it():
    moved = np.full((STEPS, 2), 0.25, np.float32)
    trace = Reference(forgetting, START).run(INPUTS, resets(50), moved)
    np.testing.assert_array_equal(trace.before[0], START + np.float32(0.25))
    assert trace.before[1] == pytest.approx(trace.carries[0] + 0.25)
    slow = Reference(forgetting, START, stepwise=True).run(INPUTS, resets(50), moved)
    np.testing.assert_allclose(slow.carries, trace.carries, atol=1e-6)
