"""The log: what goes in comes out to the bit, and a file that breaks off keeps what it has."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import LogError
from deploy.log.recorder import Recorder, Tick, read_log
from deploy.log.tick import VECTORS, Packer, reader_of
from deploy.log.tools import main
from deploy.log.writer import LogFile
from deploy.robot.faults import Clamp, ClampKind
from deploy.robot.state import MEASURED
from robots.bundle import read_bundle


def tick(k, phase="run", **changes):
    rng = np.random.default_rng(k + 1)
    values = {
        "tick": k,
        "phase": phase,
        "scheduled_s": 0.02 * k,
        "start_s": 0.02 * k + 1e-5,
        "state_s": 0.02 * k + 1e-3,
        "command_s": 0.02 * k + 3e-3,
        "state_round_trip_s": 1e-3,
        "command_round_trip_s": 5e-4,
        "inputs": {"joint_angles": rng.standard_normal(3).astype(np.float32), "time": np.float32([0.02 * k])},
        "action": rng.standard_normal(3).astype(np.float32),
        "target": rng.standard_normal(3),
        "sent": rng.standard_normal(3),
        "joint_position": rng.standard_normal(3),
        "joint_velocity": rng.standard_normal(3),
        "joint_torque": rng.standard_normal(3),
        "joint_temperature": np.array([30.5, 40.25, 50.0 + k]),
        "quat_wxyz": np.array([1.0, 0.0, 0.0, 0.0]),
        "gyro_b": rng.standard_normal(3),
        "accel_b": rng.standard_normal(3),
        "safety": (Clamp("hip", ClampKind.POSITION),) if k % 2 else (),
        "stale": k == 3,
        "stages_ms": {"read": 1.5, "infer": 0.1 * k, "guard": 0.2, "write": 0.3},
    }
    return Tick(**(values | changes))


def record(path, kinfer, ticks, close=True):
    spec = read_bundle(kinfer).spec
    log = Recorder(path, spec=spec, bundle=kinfer.read_bytes(), settings={"host": "h", "command": {"vx": 0.5}})
    for t in ticks:
        log.tick(t)
    log.event(0.5, "note", "text")
    if close:
        log.close({"ended": "completed"})
    return log


def test_a_log_gives_back_every_number_to_the_bit(tmp_path, kinfer):
    ticks = [tick(k) for k in range(5)]
    record(tmp_path / "a.mcap", kinfer, ticks)
    log = read_log(tmp_path / "a.mcap")
    assert log.complete and log.result == {"ended": "completed"}
    assert log.metadata["command"] == {"vx": 0.5} and log.spec == read_bundle(kinfer).spec
    assert log.bundle == read_bundle(kinfer)
    assert log.inputs["joint_angles"].dtype == np.float32
    for row, t in enumerate(ticks):
        for name in VECTORS:
            assert np.array_equal(getattr(log, name)[row], getattr(t, name))
        assert np.array_equal(log.inputs["joint_angles"][row], t.inputs["joint_angles"])
        assert log.start_s[row] == t.start_s and log.command_round_trip_s[row] == t.command_round_trip_s
        assert log.safety[row] == t.safety and log.stale[row] == t.stale
        assert {name: taken[row] for name, taken in log.stages_ms.items()} == t.stages_ms
    assert log.events == [{"t_s": 0.5, "kind": "note", "message": "text"}]


def test_ticks_without_a_policy_read_as_nan_and_the_mask_selects_the_run(tmp_path, kinfer):
    ramp = tick(0, phase="ramp", inputs={}, action=None, command_s=float("nan"))
    record(tmp_path / "a.mcap", kinfer, [ramp, tick(1), tick(2), tick(-1, phase="damp", inputs={}, action=None)])
    log = read_log(tmp_path / "a.mcap")
    assert log.run.tolist() == [False, True, True, False]
    assert np.isnan(log.action[0]).all() and np.isnan(log.inputs["joint_angles"][0]).all()
    assert np.isnan(log.command_s[0]) and np.isfinite(log.action[1:3]).all()


def log_file(path, kinfer, ticks, a_chunk=2):
    """A log as the writer's process makes it, not closed: so many ticks go to the disk at a time."""
    spec = read_bundle(kinfer).spec
    file = LogFile(path, epoch_ns=time.time_ns(), head={"spec": spec.to_json()}, bundle=kinfer.read_bytes())
    pack = Packer(array.name for array in spec.inputs).pack
    for k, one in enumerate(ticks, 1):
        file.tick(pack(one))
        if k % a_chunk == 0:
            file.flush()
    return file


@pytest.mark.parametrize("cut", [1, 40, 700, 1800])
def test_a_truncated_log_keeps_its_whole_ticks(tmp_path, kinfer, cut):
    file = log_file(tmp_path / "a.mcap", kinfer, map(tick, range(20)))
    data = (tmp_path / "a.mcap").read_bytes()
    file.close()
    (tmp_path / "b.mcap").write_bytes(data[:-cut])
    cut_log = read_log(tmp_path / "b.mcap")
    assert not cut_log.complete and cut_log.bundle is not None
    assert 14 <= len(cut_log.tick) <= 20
    assert np.array_equal(cut_log.tick, np.arange(len(cut_log.tick)))
    assert np.array_equal(cut_log.sent[-1], tick(int(cut_log.tick[-1])).sent)


def test_a_log_of_many_parts_reads_as_one(tmp_path, kinfer, monkeypatch):
    monkeypatch.setattr("deploy.log.recorder.PART", 3)
    ramp = [tick(k, phase="ramp", inputs={}, action=None, stages_ms={}) for k in range(4)]
    log_file(tmp_path / "a.mcap", kinfer, [*ramp, *map(tick, range(4, 11))]).close({})
    log = read_log(tmp_path / "a.mcap")
    assert np.array_equal(log.tick, np.arange(11)) and log.run.tolist() == [False] * 4 + [True] * 7
    assert np.isnan(log.inputs["joint_angles"][:4]).all() and np.isnan(log.stages_ms["infer"][:4]).all()
    for row in range(4, 11):
        assert np.array_equal(log.inputs["joint_angles"][row], tick(row).inputs["joint_angles"])
        assert log.safety[row] == tick(row).safety and log.stages_ms["infer"][row] == 0.1 * row


def test_a_killed_process_leaves_every_tick_it_recorded(tmp_path, kinfer):
    code = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_recorder import record, tick
        from pathlib import Path
        record(Path({str(tmp_path)!r}) / "k.mcap", Path({str(kinfer)!r}), [tick(k) for k in range(30)], close=False)
        print("ready", flush=True)
        time.sleep(60)
    """
    # the writer holds standard error until it has closed the file
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    log = read_log(tmp_path / "k.mcap")
    assert not log.complete and log.result is None
    assert len(log.tick) == 30 and log.events[0]["message"] == "text"
    assert log.events[1]["message"] == "nothing more came from the run; the log's writer closed the file"


def test_an_existing_log_is_refused_unless_forced(tmp_path, kinfer):
    record(tmp_path / "a.mcap", kinfer, [tick(0)])
    with pytest.raises(LogError, match="it exists"):
        record(tmp_path / "a.mcap", kinfer, [])
    assert len(read_log(tmp_path / "a.mcap").tick) == 1
    spec = read_bundle(kinfer).spec
    Recorder(tmp_path / "a.mcap", spec=spec, bundle=kinfer.read_bytes(), settings={}, force=True).close()
    assert len(read_log(tmp_path / "a.mcap").tick) == 0


def test_a_log_that_cannot_be_written_is_one_line(tmp_path, kinfer):
    spec = read_bundle(kinfer).spec
    (tmp_path / "file").write_text("")
    for path in ("/dev/full", tmp_path, tmp_path / "file" / "a.mcap"):
        with pytest.raises(LogError, match="cannot be written") as caught:
            Recorder(path, spec=spec, bundle=kinfer.read_bytes(), settings={}, force=True)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_log_is_one_line(tmp_path, kinfer):
    for name, data in (("text", b"hello world, not a log"), ("empty", b""), ("kinfer", kinfer.read_bytes())):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LogError) as caught:
            read_log(tmp_path / name)
        assert "\n" not in str(caught.value) and "not a log" in str(caught.value) and "()" not in str(caught.value)
    with pytest.raises(LogError, match="no such file"):
        read_log(tmp_path / "none.mcap")


def scalars(value, path=""):
    """Every number and text of a message, by its path."""
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in scalars(inner, f"{path}.{name}").items()}
    return {path: value}


def test_other_mcap_readers_find_an_index_and_schemas_that_tell_all(tmp_path, kinfer):
    from mcap.reader import make_reader

    record(tmp_path / "a.mcap", kinfer, [tick(k) for k in range(4)])
    with (tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert {c.topic for c in summary.channels.values()} == {"/tick", "/event"}
        assert len(summary.chunk_indexes) >= 1 and summary.statistics.message_count == 5
        seen = list(reader.iter_messages(topics=["/tick"]))
    assert {s.encoding for s, _, _ in seen} == {c.message_encoding for _, c, _ in seen} == {"protobuf"}
    read = reader_of("protobuf", seen[0][0].name, seen[0][0].data)
    for k, (_, _, message) in enumerate(seen):
        values = read(message.data)
        assert values["tick"] == k and values["sent"] == tick(k).sent.tolist()
        assert values["safety"] == [{"joint": "hip", "kind": "position limit"}] * (k % 2)
    # PlotJuggler and Foxglove split paths at dots and brackets
    paths = [step for path in scalars(values) for step in path[1:].split(".")]
    assert len(paths) > 20 and all(step.isidentifier() for step in paths)
    assert abs(seen[0][2].log_time / 1e9 - time.time()) < 60


def test_a_decoder_of_other_people_reads_ticks_and_events(tmp_path, kinfer):
    decoder = pytest.importorskip("mcap_protobuf.decoder")
    from mcap.reader import make_reader

    record(tmp_path / "a.mcap", kinfer, [tick(k) for k in range(4)])
    log = read_log(tmp_path / "a.mcap")
    with (tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[decoder.DecoderFactory()])
        messages = [(channel.topic, message) for _, channel, _, message in reader.iter_decoded_messages()]
    ticks = [message for topic, message in messages if topic == "/tick"]
    for k, message in enumerate(ticks):
        for name in VECTORS:
            assert list(getattr(message, name)) == getattr(log, name)[k].tolist()
        assert list(message.inputs.joint_angles) == log.inputs["joint_angles"][k].tolist()
        assert message.stages_ms.infer == log.stages_ms["infer"][k] and message.phase == "run"
        assert [(c.joint, c.kind) for c in message.safety] == [(c.joint, c.kind.value) for c in log.safety[k]]
    (event,) = [message for topic, message in messages if topic == "/event"]
    assert (event.message, event.name, event.level, event.t_s) == ("text", "note", 2, 0.5)
    assert event.timestamp.ToNanoseconds() > 1e18


def test_numbers_that_are_not_finite_read_as_they_were(tmp_path, kinfer):
    wild = np.array([1.0, np.nan, np.inf], dtype=np.float32)
    record(tmp_path / "a.mcap", kinfer, [tick(0, action=wild, joint_temperature=None)])
    log = read_log(tmp_path / "a.mcap")
    assert np.array_equal(log.action[0], wild, equal_nan=True) and np.isnan(log.joint_temperature).all()


def test_ages_count_from_when_a_channel_last_changed_and_from_the_answer(tmp_path, kinfer):
    same = {"gyro_b": np.zeros(3)}
    ticks = [tick(k, **(same if k > 1 else {})) for k in range(6)]
    ticks[4] = tick(4, **same, state_s=ticks[3].state_s, state_round_trip_s=float("nan"))  # no answer
    record(tmp_path / "a.mcap", kinfer, ticks)
    ages = read_log(tmp_path / "a.mcap").ages_s
    late = np.array([0.0, 0.0, 0.0, 0.0, ticks[4].start_s - ticks[3].state_s, 0.0])
    assert np.allclose(ages["call"], late)
    assert np.allclose(ages["gyro"], [0, 0, 0, 0.02, 0.02 + late[4], 0.06])
    assert np.allclose(ages["orientation"], [0, 0.02, 0.04, 0.06, 0.06 + late[4], 0.1])
    assert not ages["joints"].any() and not ages["accelerometer"].any()


OLD = Path(__file__).parents[1] / "first_version" / "leg_run.mcap"


def test_logs_of_the_first_version_are_read(tmp_path):
    log = read_log(OLD)
    assert log.complete and log.phase == ["ramp", *["run"] * 5, "damp"] and log.bundle is not None
    for row in (1, 2, 3, 4):
        t = tick(row)
        for name in ("action", "target", "sent", *MEASURED):
            if name != "joint_temperature":
                assert np.array_equal(getattr(log, name)[row], getattr(t, name)), name
        assert np.array_equal(log.inputs["joint_angles"][row], t.inputs["joint_angles"])
        assert log.safety[row] == t.safety and log.stages_ms["infer"][row] == t.stages_ms["infer"]
    assert np.isnan(log.command_s[3]) and np.isnan(log.action[5][1:]).all() and np.isnan(log.target[6]).all()
    assert np.isnan(log.joint_temperature).all() and log.ages_s == {}
    assert log.events == [{"t_s": 0.5, "kind": "note", "message": "text"}]
    for tool in ("csv", "npz", "view"):
        assert main([tool, str(OLD), "-o", str(tmp_path / "out")]) == 0
    assert main(["recover", str(OLD), "-o", str(tmp_path / "new.mcap")]) == 0
    assert np.array_equal(read_log(tmp_path / "new.mcap").sent, log.sent)


def changed_log(log, path, change, schema=lambda data: data):
    """A copy of a log with the bytes of each tick, and of the schemas, changed."""
    from mcap.records import Channel, Message, Metadata, Schema
    from mcap.stream_reader import StreamReader
    from mcap.writer import Writer

    schemas, channels = {}, {}
    with log.open("rb") as source, path.open("wb") as target:
        writer = Writer(target)
        writer.start()
        for r in StreamReader(source).records:
            if isinstance(r, Metadata):
                writer.add_metadata(r.name, r.metadata)
            elif isinstance(r, Schema):
                schemas[r.id] = writer.register_schema(r.name, r.encoding, schema(r.data))
            elif isinstance(r, Channel):
                channels[r.id] = writer.register_channel(r.topic, r.message_encoding, schemas[r.schema_id]), r.topic
            elif isinstance(r, Message):
                channel, topic = channels[r.channel_id]
                writer.add_message(channel, r.log_time, change(r.data) if topic == "/tick" else r.data, r.publish_time)
        writer.finish()


@pytest.mark.parametrize(
    "change",
    [
        lambda tick: tick.pop("tick"),
        lambda tick: tick.pop("phase"),
        lambda tick: tick.update(phase="flight"),
        lambda tick: tick.update(tick=10**30),
        lambda tick: tick.update(inputs=None),
        lambda tick: tick.update(safety=3),
        lambda tick: tick.update(safety=["hip: boredom"]),
        lambda tick: tick.update(sent="far"),
    ],
)
def test_an_old_tick_that_makes_no_sense_is_one_line(tmp_path, change):
    def changed(data):
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    changed_log(OLD, tmp_path / "a.mcap", changed)
    with pytest.raises(LogError, match="its ticks are not those of ksim run") as caught:
        read_log(tmp_path / "a.mcap")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"\x12\x06flight", lambda data: b""])
def test_a_tick_that_makes_no_sense_is_one_line(tmp_path, kinfer, change):
    record(tmp_path / "a.mcap", kinfer, [tick(0)])
    changed_log(tmp_path / "a.mcap", tmp_path / "b.mcap", change)
    with pytest.raises(LogError, match="its ticks are not those of ksim run") as caught:
        read_log(tmp_path / "b.mcap")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema", [lambda data: b"", lambda data: data[:-1], lambda data: data.replace(b"Tick", b"Tock")]
)
def test_a_schema_that_makes_no_sense_is_one_line(tmp_path, kinfer, schema):
    record(tmp_path / "a.mcap", kinfer, [tick(0)])
    changed_log(tmp_path / "a.mcap", tmp_path / "b.mcap", lambda data: data, schema)
    with pytest.raises(LogError, match="its ticks are not those of ksim run") as caught:
        read_log(tmp_path / "b.mcap")
    assert "\n" not in str(caught.value)
