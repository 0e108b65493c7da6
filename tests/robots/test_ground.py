"""Uneven ground: as rough and as steep as told, flat where the robot starts."""

import dataclasses

import mujoco
import numpy as np
import pytest

from robots.ground import CELL_M, SIDE_M, Ground
from robots.model import build_model


def test_bumps_and_slopes_are_as_told():
    bumps = Ground(slope_rad=0.0).heights()
    assert bumps.shape == (481, 481)
    assert 0.02 < bumps.max() <= 0.03 and -0.03 <= bumps.min() < -0.02
    hills = Ground(bumps_m=0.0).heights()
    slope = np.hypot(*np.gradient(hills, CELL_M))
    far = slice(0, 200)  # well away from the middle
    assert np.tan(0.0873) * 0.95 < slope[far].max() <= np.tan(0.0873) * 1.01


def test_the_middle_is_flat_and_a_seed_is_a_ground():
    heights = Ground(seed=5).heights()
    middle = slice(240 - 4, 240 + 5)
    assert not heights[middle, middle].any()
    np.testing.assert_array_equal(heights, Ground(seed=5).heights())
    assert not np.array_equal(heights, Ground(seed=6).heights())


def test_the_model_has_these_heights_and_the_robot_stands_as_before():
    ground = Ground(seed=2)
    built, flat, heights = build_model("kbot", ground=ground), build_model("kbot"), ground.heights()
    np.testing.assert_array_equal(built.home_qpos, flat.home_qpos)
    assert built.standing_height_m == flat.standing_height_m
    data = mujoco.MjData(built.model)
    mujoco.mj_forward(built.model, data)
    seen, floor = np.zeros(1, np.int32), np.asarray([1, 0, 0, 0, 0, 0], np.uint8)
    for row, column in ((10, 470), (100, 200), (333, 77), (240, 240)):
        x, y = (column / 480 - 0.5) * SIDE_M, (row / 480 - 0.5) * SIDE_M
        start = np.asarray([x + 1e-6, y + 1e-6, 5.0])
        down = mujoco.mj_ray(built.model, data, start, np.asarray([0.0, 0.0, -1.0]), floor, 1, -1, seen)
        assert seen[0] == built.floor_geom
        assert 5.0 - down == pytest.approx(heights[row, column], abs=1e-5)


def test_each_ground_is_a_model_of_its_own():
    one, same = build_model("kbot", ground=Ground(seed=1)), build_model("kbot", ground=Ground(seed=1))
    assert one is same and build_model("kbot", ground=Ground(seed=2)) is not one
    assert build_model("kbot", ground=dataclasses.replace(Ground(seed=1), bumps_m=0.0)) is not one
