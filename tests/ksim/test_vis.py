"""What is shown of an episode: recording, arrows, video, plots page, browser and window."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import json
import os
import re
import signal
import subprocess
import sys
import types
import urllib.error
import urllib.request

import mujoco
import numpy as np
import pytest

from deploy.view import scene
from ksim import live, video, vis
from ksim.arrows import ABOVE_M, BELOW_M, BESIDE_M, arrows
from ksim.cli import main
from ksim.environment import make_environment
from ksim.errors import KsimError
from ksim.evaluate import JaxBatchPolicy, evaluate
from ksim.figures import Figures, caption, largest, reward_lines, round_marks, torque_lines
from ksim.plots import write_plots
from ksim.recording import Recording, clearance, record
from toolkit.cli import run_verb


@pytest.fixture(scope="module")
def alone(config):
    return make_environment(config, 1, "mujoco")


@pytest.fixture(scope="module")
def recording(config, trained, alone):
    return record(config, JaxBatchPolicy(trained.policy), seed=5, environment=alone)


@pytest.fixture(scope="module")
def by_hand(built):
    """Two steps of the K-Bot at home, heading along the world's y, asked for 0.5 m/s forward."""
    rows, joints = 2, len(built.spec.joints)

    def make(**changes) -> Recording:
        values = {
            "robot": "kbot", "task": "hand", "seed": 1, "dt_s": 0.02, "survived": True, "weight_n": 400.0,
            "clearance_m": 0.6, "joint_names": built.spec.joint_names, "foot_names": ("left", "right"),
            "qpos": np.tile(built.home_qpos, (rows, 1)),
            "base_position": np.tile([1.0, 2.0, 0.9], (rows, 1)),
            "base_velocity_w": np.tile([0.3, 0.1, 0.7], (rows, 1)),
            "heading": np.full(rows, np.pi / 2),
            "commands": {"xvel": np.full(rows, 0.5), "yvel": np.zeros(rows)},
            "push_w": np.zeros((rows, 3)), "kick_w": np.zeros((rows, 3)),
            "push_point": np.tile([1.0, 2.0, 1.0], (rows, 1)),
            "foot_position": np.tile([[1.0, 2.1, 0.05], [1.0, 1.9, 0.05]], (rows, 1, 1)),
            "foot_force": np.tile([100.0, 300.0], (rows, 1)),
            "torque_share": np.linspace(-1.0, 0.5, rows * joints).reshape(rows, joints),
            "rewards": {"alive": np.ones(rows), "torque": np.full(rows, -0.25)},
        }  # fmt: skip
        return Recording(**(values | changes))

    return make


def of_kind(recording: Recording, kind: str, row: int = 0) -> np.ndarray:
    """(tail, head) of the arrows of a kind, (A, 2, 3)."""
    shown = arrows(recording)
    pairs = np.stack([shown.start[row], shown.end[row]], axis=1)
    return pairs[[k == kind for k in shown.kinds]]


def test_a_recording_is_the_episode_that_evaluation_runs(recording, config, trained, alone):
    result = evaluate(config, JaxBatchPolicy(trained.policy), episodes=1, seed=5, environment=alone, record=True)
    assert len(recording) == 20 and recording.survived == result.survived[0]
    assert recording.length_s == pytest.approx(0.4) and recording.time_s[0] == pytest.approx(0.02)
    # a row is after its step, an evaluation's before it
    assert np.array_equal(recording.qpos[:-1], result.qpos[1:, 0])
    total = config.physics.control_period_s * sum(v.sum() for v in recording.rewards.values())
    assert total == pytest.approx(result.returns[0], rel=1e-5)
    assert set(recording.rewards) == set(config.rewards)
    assert recording.commands["xvel"][0] == result.inputs["command"][0, 0, 0]


def test_a_recording_has_where_feet_and_base_are_and_what_acts_on_them(recording, built):
    steps = len(recording)
    assert recording.foot_force.shape == (steps, 2) and recording.foot_position.shape == (steps, 2, 3)
    assert recording.foot_names == built.foot_names
    assert recording.foot_force.sum(axis=1).max() > 0.3 * recording.weight_n
    assert (abs(recording.foot_position[:, :, 2]) < 0.2).all()
    assert np.allclose(recording.base_position, recording.qpos[:, built.base_position], atol=1e-6)
    assert recording.torque_share.shape == (steps, 20) and 0.0 < abs(recording.torque_share).max() < 1.5
    moved = np.diff(recording.base_position, axis=0)[:, :2] / recording.dt_s
    assert np.abs(moved - recording.base_velocity_w[1:, :2]).max() < 0.1


def test_a_recording_is_read_as_it_was_written(recording, tmp_path):
    recording.save(tmp_path / "r.npz")
    again = Recording.load(tmp_path / "r.npz")
    for field in dataclasses.fields(Recording):
        a, b = getattr(recording, field.name), getattr(again, field.name)
        if isinstance(a, dict):
            assert list(a) == list(b) and all(np.array_equal(a[k], b[k]) for k in a)
        else:
            assert type(a) is type(b) and np.array_equal(a, b), field.name


def test_only_one_environment_is_recorded(config, trained, environment):
    with pytest.raises(KsimError, match="got an environment of 4, expected 1"):
        record(config, JaxBatchPolicy(trained.policy), seed=0, environment=environment)


def test_the_clearance_is_to_the_top_of_what_is_seen():
    # the K-Bot is 1.4 m to 1.7 m tall and its base is at the hips
    assert 0.4 < clearance("kbot") < 0.8


def test_a_command_of_half_a_metre_a_second_is_half_a_metre_along_the_heading(by_hand):
    ((tail, head),) = of_kind(by_hand(), "command")
    # the robot heads along y; the arrow stands above its top, 0.9 + 0.6 m
    assert tail == pytest.approx([1.0, 2.0, 1.5 + ABOVE_M])
    assert head - tail == pytest.approx([0.0, 0.5, 0.0])
    left = by_hand(commands={"vx": np.zeros(2), "vy": np.full(2, 0.2)})  # the older names
    ((tail, head),) = of_kind(left, "command")
    assert head - tail == pytest.approx([-0.2, 0.0, 0.0])


def test_the_velocity_is_drawn_flat_below_the_command(by_hand):
    ((tail, head),) = of_kind(by_hand(), "velocity")
    assert tail == pytest.approx([1.0, 2.0, 1.5 + ABOVE_M - BELOW_M])
    assert head - tail == pytest.approx([0.3, 0.1, 0.0])
    # forward is along y, left along -x
    assert by_hand().velocity_h[0] == pytest.approx([0.1, -0.3])


def test_contact_forces_point_up_beside_the_feet_half_a_metre_for_the_whole_weight(by_hand):
    left, right = of_kind(by_hand(), "contact")
    assert left[0] == pytest.approx([1.0, 2.1 + BESIDE_M, 0.05])
    assert right[0] == pytest.approx([1.0, 1.9 - BESIDE_M, 0.05])
    # 100 N and 300 N of 400 N
    assert left[1] - left[0] == pytest.approx([0.0, 0.0, 0.125])
    assert right[1] - right[0] == pytest.approx([0.0, 0.0, 0.375])


def test_a_push_ends_where_it_acts_and_what_is_not_there_has_no_length(by_hand):
    force, kick = of_kind(by_hand(push_w=np.tile([50.0, 0.0, 0.0], (2, 1))), "push")
    assert force == pytest.approx(np.array([[0.5, 2.0, 1.0], [1.0, 2.0, 1.0]]))
    assert np.array_equal(kick[0], kick[1])
    standing = by_hand(commands={}, base_velocity_w=np.full((2, 3), 0.01))
    for kind in ("command", "velocity", "push"):
        for tail, head in of_kind(standing, kind):
            assert np.array_equal(tail, head)


def test_a_kick_stays_to_be_seen_for_some_steps(by_hand):
    steps = 20
    kick = np.zeros((steps, 3))
    kick[2] = (0.0, 0.4, 0.0)
    many = {
        name: np.repeat(getattr(by_hand(), name)[:1], steps, axis=0)
        for name in ("qpos", "base_position", "base_velocity_w", "heading", "push_w", "push_point", "foot_position")
    }
    forces = np.zeros((steps, 2))
    shown = arrows(by_hand(**many, kick_w=kick, foot_force=forces, commands={}))
    length = np.linalg.norm(shown.end - shown.start, axis=-1)[:, 3]
    # 0.3 s are 15 steps of 0.02 s
    assert np.flatnonzero(length).tolist() == list(range(2, 17))
    assert length[2:17] == pytest.approx(0.4)


def test_the_plots_show_the_sum_and_the_largest_terms_and_the_most_loaded_joints(by_hand):
    lines = reward_lines(by_hand())
    assert list(lines) == ["total", "alive", "torque"] and lines["total"] == pytest.approx([0.75, 0.75])
    assert list(largest({"a": np.ones(2), "b": np.array([-3.0, 0.0]), "c": np.zeros(2)}, 2)) == ["b", "a"]
    names = by_hand().joint_names
    loads = np.zeros((2, len(names)))
    loads[:, 3], loads[:, 7] = -0.9, 0.4
    torque = torque_lines(by_hand(torque_share=loads))
    assert list(torque)[:2] == [names[3], names[7]] and torque[names[3]] == pytest.approx([0.9, 0.9])
    assert reward_lines(by_hand(rewards={}))["total"] == pytest.approx([0.0, 0.0])


def test_the_axes_have_round_numbers_about_the_values_and_zero():
    assert round_marks({"a": np.array([0.3, 2.6])}, 1e-3) == pytest.approx([0.0, 1.0, 2.0, 3.0])
    marks = round_marks({"a": np.array([-0.4, 0.2])}, 1.0)
    assert marks[0] <= -0.4 and marks[-1] == pytest.approx(1.0) and 0.0 in marks


def test_a_figure_holds_the_rows_up_to_now(by_hand):
    reward, torque = Figures(mujoco, by_hand()).at(1)
    assert reward.title == "reward [1/s]" and torque.title == "torque / limit"
    assert reward.linename[1] == b"alive" or reward.linename[1] == "alive"
    assert reward.linepnt[:4].tolist() == [2, 2, 2, 0]
    assert reward.linedata[0, :4] == pytest.approx([0.02, 0.75, 0.04, 0.75])
    names, values = caption(by_hand(), 1)
    assert names.split("\n") == ["time", "velocity", "xvel", "yvel"]
    assert values.split("\n") == ["0.04 s", "+0.10 -0.30 m/s", "+0.50", "+0.00"]


def pictures(path) -> np.ndarray:
    """The pictures of a video, (N, HEIGHT, WIDTH, 3)."""
    ffmpeg = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, video.HEIGHT, video.WIDTH, 3)


def greens(picture: np.ndarray) -> int:
    """Pixels of the command's colour in the view of the robot."""
    red, green, blue = picture[:, : video.WIDTH - video.PLOTS].astype(int).transpose(2, 0, 1)
    return int(np.sum((green > 100) & (green > 1.8 * red) & (green > 1.5 * blue)))


def test_a_video_shows_the_robot_and_the_commands_arrow_in_its_colour(by_hand, tmp_path):
    if video.headless_backend() is None:
        pytest.skip(video.REMEDY)
    asked, still = tmp_path / "asked.mp4", tmp_path / "still.mp4"
    assert video.render(asked, by_hand()) and video.render(still, by_hand(commands={}))
    shown, without = pictures(asked), pictures(still)
    assert shown[0].mean() > 30 and shown[0].std() > 20
    assert greens(shown[0]) > 50 and greens(without[0]) == 0
    # the plots are there
    assert shown[0, :, video.WIDTH - video.PLOTS :].max() > 180


def test_a_video_of_what_has_nothing_to_plot_is_the_robot_alone(by_hand, tmp_path):
    if video.headless_backend() is None:
        pytest.skip(video.REMEDY)
    whole = by_hand()
    plain = dataclasses.replace(whole, rewards={}, torque_share=np.zeros((len(whole), 0)))
    right = {}
    for name, recording in (("plotted", whole), ("plain", plain)):
        assert video.render(tmp_path / f"{name}.mp4", recording)
        right[name] = pictures(tmp_path / f"{name}.mp4")[-1][:, -200:].astype(float)
    # panels are dark; the robot's sky and floor are not
    assert right["plotted"].mean() < 60 < 100 < right["plain"].mean()


def test_without_opengl_no_video_is_written(by_hand, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "headless_backend", lambda: None)
    assert video.render(tmp_path / "x.mp4", by_hand()) is False
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_that_fails_is_one_line(by_hand, tmp_path):
    backend = video.headless_backend()
    if backend is None:
        pytest.skip(video.REMEDY)
    with pytest.raises(KsimError, match=rf"x\.mp4: drawing with {backend} failed: .*nowhere"):
        video.render(tmp_path / "x.mp4", by_hand(robot="nowhere"))


def test_the_page_of_plots_has_every_term_joint_and_foot_by_name_and_loads_nothing(recording, tmp_path):
    page = tmp_path / "plots" / "p.html"
    write_plots(page, recording, "runs/<b>.ckpt", str(tmp_path / "a b.mp4"))
    text = page.read_text(encoding="utf-8")
    headings = set(re.findall(r"<h3>([^<]*)<", text))
    assert set(recording.rewards) | set(recording.joint_names) | set(recording.foot_names) <= headings
    assert "&lt;b&gt;.ckpt" in text and "<b>" not in text
    assert '<video src="../a%20b.mp4"' in text
    assert "http" not in text and "<script" not in text
    assert text.count("command</span>") == 1  # this task asks for xvel, not yvel
    assert "still standing after 0.40 s" in text


SHAPES = """
<mujoco>
  <asset>
    <mesh name="wedge" vertex="0 0 0  1 0 0  0 2 0  0 0 3"/>
    <material name="blue" rgba="0 0 1 0.5"/>
  </asset>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <geom type="box" size="0.1 0.2 0.3" rgba="1 0 0 1"/>
    <geom type="sphere" size="0.5" material="blue"/>
    <geom type="capsule" size="0.1 0.4"/>
    <geom type="cylinder" size="0.1 0.4"/>
    <geom type="ellipsoid" size="0.1 0.2 0.3"/>
    <geom type="mesh" mesh="wedge"/>
  </worldbody>
</mujoco>
"""


def test_shapes_for_the_browser_are_as_large_as_mujocos_and_in_their_middle():
    pytest.importorskip("trimesh")
    model = mujoco.MjModel.from_xml_string(SHAPES)
    assert scene.geom_shape(model, 0) is None
    sizes = [(0.1, 0.2, 0.3), (0.5, 0.5, 0.5), (0.1, 0.1, 0.5), (0.1, 0.1, 0.4), (0.1, 0.2, 0.3)]
    for geom, half in enumerate(sizes, start=1):
        vertices, faces = scene.geom_shape(model, geom)
        # round ones are polygons: a little smaller
        assert vertices.max(axis=0) == pytest.approx(half, rel=0.03), geom
        assert vertices.min(axis=0) == pytest.approx([-h for h in half], rel=0.03), geom
        assert faces.max() == len(vertices) - 1
    vertices, faces = scene.geom_shape(model, 6)
    assert len(vertices) == len(faces) == 4
    assert scene.geom_colour(model, 1) == ((255, 0, 0), 1.0)
    assert scene.geom_colour(model, 2) == ((0, 0, 255), 0.5)


def test_a_player_begins_again_at_the_end_and_follows_its_speed():
    player = live.Player(0.4)
    player.advance(0.1, 0.5)
    assert player.time_s == pytest.approx(0.05) and player.row(0.02) == 2
    player.time_s = 0.4
    assert player.row(0.02) == 19
    player.advance(0.01, 1.0)
    assert player.time_s == 0.0 and player.row(0.02) == 0


def test_the_browser_shows_another_episode_on_request_and_the_server_ends_with_it(by_hand, monkeypatch, capsys):
    pytest.importorskip("viser")
    addresses, seeds, said = [], [], []
    advance = live.Panel.advance

    def press(panel, player, passed_s):
        advance(panel, player, passed_s)
        panel.wants_another.set()

    def another(seed):
        seeds.append(seed)
        if len(seeds) == 2:
            said.append(urllib.request.urlopen(addresses[0], timeout=10).status)
            raise KeyboardInterrupt
        return by_hand(seed=seed, rewards={"other": np.ones(2)}, foot_force=np.zeros((2, 2)))

    monkeypatch.setattr(live.Panel, "advance", press)
    with pytest.raises(KeyboardInterrupt):
        live.serve(by_hand(), 0, addresses.append, another)
    assert seeds == [2, 3] and said == [200]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", addresses[0])
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(addresses[0], timeout=10)
    assert capsys.readouterr().out == ""


def test_a_slider_that_is_drawn_sets_the_time_and_a_pause_holds_it(by_hand):
    viser = pytest.importorskip("viser")
    server = viser.ViserServer(scene.HOST, 0, verbose=False)
    try:
        panel, player = live.Panel(server, by_hand(), another=False), live.Player(1.0)
        panel.advance(player, 0.01)
        assert player.time_s == pytest.approx(0.01)
        panel._time.value = 0.03
        panel.advance(player, 0.01)
        assert player.time_s == pytest.approx(0.03)
        panel._playing.value = False
        panel.advance(player, 0.01)
        assert player.time_s == pytest.approx(0.03)
        panel._kinds["push"].value = False
        assert panel.kinds == {"command", "velocity", "contact"} and panel.follow
    finally:
        server.stop()


def test_the_command_writes_a_video_of_a_checkpoints_episode_and_its_plots(checkpoint_path, tmp_path, capsys):
    if video.headless_backend() is None:
        pytest.skip(video.REMEDY)
    out, page = tmp_path / "v.mp4", tmp_path / "p.html"
    argv = ["vis", "--checkpoint", str(checkpoint_path), "--seconds", "0.2", "--seed", "3", "--json"]
    assert main([*argv, "--out", str(out), "--plots", str(page)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["video"], answer["plots"], answer["address"]) == (str(out), str(page), None)
    # as long as was asked: it does not fall in 0.2 s
    assert answer["survived"] and answer["length_s"] == pytest.approx(0.2)
    shown = pictures(out)
    assert len(shown) == 0.2 * video.FPS
    assert shown[0].mean() > 30 and shown[0].std() > 20 and not np.array_equal(shown[0], shown[-1])
    assert page.stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.html", "v.mp4"]


def test_live_without_a_screen_serves_a_page_until_ctrl_c(ksim, checkpoint_path, tmp_path):
    pytest.importorskip("viser")
    page = tmp_path / "p.html"
    process = ksim(
        *("vis", "--checkpoint", checkpoint_path, "--seconds", "0.4", "--browser", "--port", "0", "--json"),
        *("--plots", page),
        wait=False,
    )
    try:
        answer = json.loads(process.stdout.readline())
        with urllib.request.urlopen(answer["address"], timeout=30) as reply:
            body = reply.read().decode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert reply.status == 200 and "<html" in body
    assert answer["video"] is None and answer["plots"] == str(page) and answer["length_s"] == pytest.approx(0.4)
    assert page.stat().st_size > 10_000
    assert (process.returncode, out, err) == (130, "", "ksim vis: interrupted\n")


def test_without_viser_the_browser_says_what_to_install(checkpoint_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert run_verb("vis", vis.main, ["--checkpoint", str(checkpoint_path), "--browser"]) == 1
    assert capsys.readouterr().err == "ksim vis: needs viser; install it with: pip install 'ksim2real[view]'\n"


class Window:
    """Stands for MuJoCo's window: as large, and closed after some pictures."""

    def __init__(self, model, data, pictures: int = 3):
        self.user_scn, self.viewport = mujoco.MjvScene(model, 100), mujoco.MjrRect(0, 0, 1600, 900)
        self.left, self.data, self.drawn, self.figures = 2 * pictures, data, [], []

    def __enter__(self):
        return self

    __exit__ = close = lambda self, *_: None
    lock = lambda self: self  # noqa: E731

    def is_running(self) -> bool:
        self.left -= 1
        return self.left > 0

    def set_figures(self, pairs) -> None:
        self.figures.append([(p.left, p.bottom, p.width, f.title) for p, f in pairs])

    def sync(self) -> None:
        colours = [tuple(np.round(g.rgba[:3], 2)) for g in self.user_scn.geoms[: self.user_scn.ngeom]]
        self.drawn.append((self.data.qpos.copy(), colours))


def test_a_window_has_arrows_and_plots_until_it_is_closed(by_hand, monkeypatch):
    windows = []

    def launch_passive(model, data):
        windows.append(Window(model, data))
        return windows[0]

    monkeypatch.setitem(sys.modules, "mujoco.viewer", types.SimpleNamespace(launch_passive=launch_passive))
    recording = by_hand()
    vis._window(recording)
    qpos, colours = windows[0].drawn[0]
    assert np.array_equal(qpos, recording.qpos[0])
    # command, velocity and two feet; no push
    assert len(colours) == 4 and colours[0] == pytest.approx((0.15, 0.75, 0.3))
    assert windows[0].figures[0] == [(1120, 300, 480, "reward [1/s]"), (1120, 0, 480, "torque / limit")]
    assert 1 <= len(windows[0].drawn) <= 4


@pytest.mark.parametrize(
    ("flags", "screen", "shown"),
    [
        ([], True, "window"),
        ([], False, "video"),
        (["--live"], True, "window"),
        (["--live"], False, "browser"),
        (["--browser"], True, "browser"),
        (["--out", "x.mp4"], True, "video"),
        (["--out", "x.mp4", "--live"], True, "video window"),
    ],
)
def test_where_a_policy_is_shown(flags, screen, shown, by_hand, tmp_path, monkeypatch, capsys):
    done: list[str] = []

    def serve(recording, port, ready, another):
        done.append("browser")
        ready(f"http://127.0.0.1:{port}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "viser", types.ModuleType("viser"))
    sys.modules["viser"].__spec__ = importlib.machinery.ModuleSpec("viser", None)
    monkeypatch.setattr(vis, "has_screen", lambda: screen)
    monkeypatch.setattr(vis, "_window", lambda recording: done.append("window"))
    monkeypatch.setattr("ksim.live.serve", serve)
    monkeypatch.setattr("ksim.video.render", lambda path, recording: done.append("video") or True)
    monkeypatch.setattr("ksim.evaluate.load_policy", lambda *_, **__: (None, None))
    monkeypatch.setattr("ksim.environment.make_environment", lambda *_: None)
    monkeypatch.setattr("ksim.recording.record", lambda *_, **__: by_hand())
    assert vis.main(["--checkpoint", "p.ckpt", *flags]) == 0
    assert done == shown.split()
    out = capsys.readouterr().out
    assert out.startswith("p.ckpt: still standing after 0.04 s")
    assert ("http://127.0.0.1:8080" in out) == (shown == "browser") and ("wrote" in out) == ("video" in shown)


def test_a_screen_is_where_a_display_is_named(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not vis.has_screen()
    monkeypatch.setitem(os.environ, "WAYLAND_DISPLAY", "wayland-0")
    assert vis.has_screen()


@pytest.mark.parametrize(
    ("flags", "overrides"),
    [
        ([], ["episode_length_s=10.0"]),
        (["--seconds", "2.5"], ["episode_length_s=2.5"]),
        (["--set", "episode_length_s=3", "--set", "seed=1"], ["episode_length_s=3", "seed=1"]),
        (["--set", "seed=1"], ["seed=1", "episode_length_s=10.0"]),
    ],
)
def test_the_length_that_a_person_sets_is_the_one_that_is_shown(flags, overrides, by_hand, tmp_path, monkeypatch):
    given = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ksim.video.render", lambda path, recording: True)
    monkeypatch.setattr("ksim.evaluate.load_policy", lambda *_, overrides: given.append(overrides) or (None, None))
    monkeypatch.setattr("ksim.environment.make_environment", lambda *_: None)
    monkeypatch.setattr("ksim.recording.record", lambda *_, **__: by_hand())
    assert vis.main(["--checkpoint", "p.ckpt", "--out", "x.mp4", *flags]) == 0
    assert given == [overrides]


def test_two_lengths_are_refused():
    with pytest.raises(KsimError, match="--seconds: got 2 beside --set episode_length_s=3, expected one of them"):
        vis.main(["--checkpoint", "p.ckpt", "--seconds", "2", "--set", "episode_length_s=3"])
