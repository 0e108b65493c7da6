"""Live commands: the guard by hand, and what every source has in common."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.control.commands import LiveSource, live_kind, open_live
from deploy.control.commands.guard import Change, ChangeKind, CommandGuard
from deploy.control.run import RunOptions
from tests.deploy.live_commands import Ticks, free_udp_port, guard_of, until
from toolkit.errors import SettingsError

# the guard


def test_a_velocity_moves_by_0_05_a_tick_as_on_k_scale_s_robots_and_others_by_their_range_in_0_64_s(guard):
    at = guard.apply(np.zeros(3), np.array([1.0, -1.0, -0.3]), age_s=0.0, dt_s=0.02)
    assert at.command.tolist() == pytest.approx([0.05, -0.05, -0.0125])
    assert [c.kind for c in at.changes] == [ChangeKind.SLEW] * 3
    # a skipped tick is made up for; what is near enough is reached
    assert guard.apply(np.zeros(3), np.array([1.0, 0.1, 0.0]), 0.0, 0.06).command.tolist() == pytest.approx(
        [0.15, 0.1, 0]
    )
    done = guard.apply(np.array([0.98, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]), 0.0, 0.02)
    assert done.command.tolist() == [1.0, 0.0, 0.0] and done.changes == ()


def test_what_the_policy_was_not_trained_for_is_clamped_and_what_is_no_number_is_rest(guard):
    at = guard.apply(np.array([-0.48, 0.0, 0.0]), np.array([-7.0, np.nan, np.inf]), 0.0, 0.02)
    assert at.command.tolist() == [-0.5, 0.0, 0.0]
    assert at.changes[0] == Change("xvel", ChangeKind.RANGE, -7.0, -0.5)
    assert [c.kind for c in at.changes] == [ChangeKind.RANGE] * 3


def test_a_source_that_is_silent_for_more_than_half_a_second_is_slewed_to_rest(guard):
    wanted = np.array([0.5, 0.0, 0.0])
    assert guard.apply(wanted, wanted, 0.5, 0.02).command.tolist() == wanted.tolist()
    at = guard.apply(wanted, wanted, 0.501, 0.02)
    assert at.silent and at.command.tolist() == pytest.approx([0.45, 0.0, 0.0])
    assert [(c.command, c.kind) for c in at.changes] == [("xvel", ChangeKind.SILENT)]
    assert guard.apply(wanted, wanted, np.inf, 0.02).silent and guard.apply(wanted, wanted, np.nan, 0.02).silent


def test_rest_is_the_end_of_a_range_that_leaves_0_out(policy_spec_factory, robot):
    guard = guard_of(policy_spec_factory, robot, ("xvel", 0.2, 0.6, "m/s"), ("yvel", -0.6, -0.2, "m/s"))
    assert guard.rest.tolist() == [0.2, -0.2]
    assert guard.apply(np.array([0.21, -0.21]), np.array([0.6, -0.6]), 1.0, 0.02).command.tolist() == [0.2, -0.2]


def test_a_bundle_that_tells_no_ranges_gets_the_ends_of_k_scale_s_keyboard(policy_spec_factory, robot):
    names = ("xvel", "yaw_rate", "baseheight", "relbowpitch")
    guard = guard_of(policy_spec_factory, robot, *((name, -1e6, 1e6, "") for name in names))
    assert guard.high.tolist() == pytest.approx([0.8, 0.8, 0.3, np.pi]) and guard.low.tolist() == (-guard.high).tolist()


@given(
    wanted=st.lists(st.lists(st.floats(), min_size=3, max_size=3), min_size=1, max_size=20),
    ages=st.lists(st.floats(0, 2), min_size=20, max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_asked_for_the_command_stays_in_range_and_within_its_rate(wanted, ages):
    low, high = np.array([-0.5, 0.2, 0.0]), np.array([1.0, 0.6, 0.0])
    rest = np.clip(0.0, low, high)
    guard = CommandGuard(names=("a", "b", "c"), low=low, high=high, rest=rest, slew_per_s=np.array([2.5, 1.0, 0.0]))
    before = rest
    for asked, age in zip(wanted, ages, strict=False):
        command = guard.apply(before, np.array(asked), age, 0.02).command
        assert np.all((low <= command) & (command <= high))
        assert np.all(np.abs(command - before) <= guard.slew_per_s * 0.02 + 1e-12)
        before = command


def test_one_source_at_a_time(tmp_path):
    for more in ({"command": {"xvel": 0.0}}, {"schedule": tmp_path / "course.csv"}):
        with pytest.raises(SettingsError, match="either it, --schedule or --command"):
            RunOptions(bundle=tmp_path / "p.kinfer", command_from="udp", **more)
    for wrong in ("joystick", "keyboard:w", "UDP", ":1"):
        with pytest.raises(SettingsError, match="one of keyboard, gamepad, udp"):
            RunOptions(bundle=tmp_path / "p.kinfer", command_from=wrong)
    assert live_kind("udp:1:2") == "udp" and live_kind("gamepad:/dev/input/event5") == "gamepad"


def test_a_source_whose_thread_fails_is_silent_and_says_so(guard):
    class Broken(LiveSource):
        kind = "broken"

        def _read(self):
            self._put(np.ones(3))
            raise RuntimeError("a bug")

    source = Broken(guard)
    source._thread.start()
    source._thread.join()
    ticks = Ticks(source)
    ticks.reach([0.0, 0.0, 0.0])
    until(lambda: [ticks(), source.last.silent][1])
    assert "broken: RuntimeError: a bug; nothing is read any more" in source.news()
    source.close()


def test_a_live_source_is_opened_by_its_name(policy_spec_factory, robot):
    source = open_live(f"udp:127.0.0.1:{free_udp_port()}", policy_spec_factory(robot))
    source.close()
    assert source.kind == "udp" and source.guard.names == ("vx", "yaw")
