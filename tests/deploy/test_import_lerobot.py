"""`ksim log import` of LeRobot's data sets."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from deploy.errors import LogError
from tests.deploy.foreign_logs import ARM, mapped, taken
from toolkit.cli import one_line


def lerobot(folder, version, episodes=3, frames=25, names=None, tamper=None):
    """A data set with an episode a file (2.1), or all in one file of two row groups (3.0)."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names = names or [f"{joint}.pos" for joint in ARM]
    feature = {"dtype": "float32", "shape": [3], "names": names}
    info = {"codebase_version": version, "robot_type": "so101_follower", "fps": 30, "total_episodes": episodes}
    info["features"] = {"observation.state": feature, "action": feature}
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info if tamper is None else tamper(info)))
    tables = []
    for episode in range(episodes):
        state = [[10.0 * episode + k, -50.0, 25.0] for k in range(frames)]
        tables.append(
            pa.table(
                {
                    "observation.state": pa.array(state, pa.list_(pa.float32(), 3)),
                    "action": pa.array([[s + 1 for s in row] for row in state], pa.list_(pa.float32())),
                    "timestamp": pa.array([k / 30 for k in range(frames)], pa.float32()),
                    "frame_index": pa.array(range(frames), pa.int64()),
                    "episode_index": pa.array([episode] * frames, pa.int64()),
                }
            )
        )
        if version == "v2.1":
            pq.write_table(tables[-1], folder / f"data/chunk-000/episode_{episode:06d}.parquet")
    if version != "v2.1":
        whole = pa.concat_tables([t.cast(tables[0].schema) for t in tables])
        pq.write_table(whole, folder / "data/chunk-000/file-000.parquet", row_group_size=40)
    return folder


LEROBOT_MAP = "units: {position: plus_minus_100}\njoints: {gripper: {unit: percent}}\n"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_of_a_data_set_is_found_in_both_layouts(arm, tmp_path, version):
    folder, given = lerobot(tmp_path / "set", version), mapped(tmp_path, LEROBOT_MAP)
    words = ["--robot", arm, "--map", given]
    log = taken(folder, tmp_path / "a.mcap", *words, "--episode", "1")
    assert log.spec.robot.joint_names == ARM and len(log.tick) == 25
    assert np.allclose(log.joint_position[:, 0], 1.9 / 100 * (10.0 + np.arange(25)))
    assert np.allclose(log.joint_position[:, 1], -0.85) and np.allclose(log.joint_position[:, 2], -0.2 + 0.25 * 2.0)
    assert np.allclose(log.sent[:, 0] - log.joint_position[:, 0], 1.9 / 100)
    assert np.allclose(np.diff(log.start_s), 1 / 30, atol=1e-6) and log.spec.control_period_s == 1 / 30
    about = log.metadata["import"]
    assert (about["codebase_version"], about["episode"], about["robot_type"]) == (version, 1, "so101_follower")
    assert [s["name"] for s in about["sources"]] == [
        "info.json", "episode_000001.parquet" if version == "v2.1" else "file-000.parquet",
    ]  # fmt: skip
    with pytest.raises(LogError, match=r"3 episodes; expected one; name it with --episode, from 0"):
        taken(folder, tmp_path / "b.mcap", *words)
    with pytest.raises(LogError, match=r"no (episode 7; it has 3|rows)"):
        taken(folder, tmp_path / "b.mcap", *words, "--episode", "7")
    with pytest.raises(LogError, match=r"does not say the unit of its positions; set units\.position in the map"):
        taken(folder, tmp_path / "b.mcap", "--robot", arm, "--episode", "0")


def test_names_of_an_older_data_set_and_of_a_damaged_one(arm, tmp_path):
    named = {"motors": list(ARM)}
    folder = lerobot(tmp_path / "a", "v2.1", episodes=1, names=named)
    given = mapped(tmp_path, LEROBOT_MAP)
    assert taken(folder, tmp_path / "a.mcap", "--robot", arm, "--map", given).spec.robot.joint_names == ARM
    bare = lerobot(tmp_path / "b", "v2.1", episodes=1, tamper=lambda i: i | {"features": {"observation.state": {}}})
    with pytest.raises(LogError, match=r"names of observation\.state: got None, expected a list of names"):
        taken(bare, tmp_path / "b.mcap", "--robot", arm, "--map", given)
    (folder / "data/chunk-000/episode_000000.parquet").write_bytes(b"PAR1 no more than that")
    with pytest.raises(LogError, match="not a parquet file"):
        taken(folder, tmp_path / "c.mcap", "--robot", arm, "--map", given)


def test_what_to_install_for_a_data_set_is_one_line(arm, tmp_path, monkeypatch):
    (tmp_path / "set/meta").mkdir(parents=True)
    feature = {"names": list(ARM)}
    info = {"fps": 30, "total_episodes": 1, "features": {"observation.state": feature, "action": feature}}
    (tmp_path / "set/meta/info.json").write_text(json.dumps(info))
    (tmp_path / "set/data/chunk-000").mkdir(parents=True)
    (tmp_path / "set/data/chunk-000/episode_000000.parquet").write_bytes(b"x")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as found:
        taken(tmp_path / "set", tmp_path / "a.mcap", "--robot", arm)
    assert one_line("log", found.value) == "needs pyarrow; install it with: pip install 'ksim2real[import]'"
