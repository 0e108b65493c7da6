"""From targets to motion, joint by joint: targets replayed, sag, friction of two-way motion, loop, dead travel."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.parity.motion import Replay, WindowedSimulation, arrived_at_s, measured_at_s
from deploy.parity.report import Figure, Layer, LayerName
from deploy.parity.statistics import correlation, cosine, noise_std, quantum, rms

# Ours: of the size of sensor noise and zero offsets that policies are trained to bear.
POSITION_GOOD_RAD, POSITION_POOR_RAD = 0.02, 0.05
WORST_GOOD_RAD, WORST_POOR_RAD = 0.03, 0.08
VELOCITY_GOOD_RAD_S, VELOCITY_POOR_RAD_S = 0.4, 1.0
# Ours: of joints that move by more than MOVES_RAD in a window (root mean square).
CORRELATION_GOOD, CORRELATION_POOR, MOVES_RAD = 0.7, 0.3, 0.02
# Ours: friction beyond the model's, as a share of the joint's torque limit.
FRICTION_GOOD, FRICTION_POOR = 0.05, 0.15
# A joint rests where its target stays within REST_RAD for REST_S and it is slower than REST_RAD_S.
REST_S, REST_RAD, REST_RAD_S, RESTS_LEAST, RESTS_MOST = 0.3, 0.002, 0.05, 10, 400
# A joint moves one way where it is faster than this, and slower than that [rad/s].
MOVING_RAD_S, FAST_RAD_S = 0.05, 2.0
# Places that two-way motion is compared in, how many there must be, and samples of each direction in one.
PLACES, PLACES_LEAST, SAMPLES_LEAST = 8, 3, 4
# A target turns where it travels so far before and after [rad]; so many turns are needed.
TURN_RAD, TURNS_LEAST = 0.03, 3
# A joint has turned too where it came back by this; more where it is noisy or has steps [rad].
CAME_BACK_RAD = 0.002


def in_force(log: RunLog, rows: np.ndarray, late_s: float) -> np.ndarray:
    """The target of each joint that acted when each row was measured, (T, joints) [rad]; NaN before the first.

    Args:
        late_s: from the arrival of a target to what is measured of it [s].
    """
    arrived, sent = arrived_at_s(log), log.sent
    usable = np.isfinite(arrived) & np.isfinite(sent).all(axis=1)
    arrived, sent = arrived[usable], sent[usable]
    at = np.searchsorted(arrived, measured_at_s(log)[rows] - late_s + 1e-9, side="right") - 1
    return np.where((at >= 0)[:, None], sent[np.maximum(at, 0)], np.nan)


def two_way(along: np.ndarray, direction: np.ndarray, value: np.ndarray) -> float:
    """Half of what a value is more on the way up than on the way down, at the same place; NaN if not told.

    The median over places of half the difference of the medians.

    Args:
        along: the place (T,).
        direction: 1 up, -1 down, 0 neither (T,).
        value: (T,).
    """
    both = (direction != 0) & np.isfinite(along) & np.isfinite(value)
    if not both.any():
        return np.nan
    # places that both ways pass through
    ups, downs = along[both & (direction > 0)], along[both & (direction < 0)]
    if not len(ups) or not len(downs):
        return np.nan
    low, high = max(ups.min(), downs.min()), min(ups.max(), downs.max())
    if not high > low:
        return np.nan
    place = np.floor((along - low) / (high - low) * PLACES)
    halves = []
    for k in range(PLACES):
        here = both & (place == k)
        up, down = value[here & (direction > 0)], value[here & (direction < 0)]
        if min(len(up), len(down)) >= SAMPLES_LEAST:
            halves.append(0.5 * (np.median(up) - np.median(down)))
    return float(np.median(halves)) if len(halves) >= PLACES_LEAST else np.nan


def dead_travel(target: np.ndarray, position: np.ndarray) -> float:
    """How far a target goes back before the joint comes back, median over its turns [rad]; NaN if it turns too seldom.

    Args:
        target: in force (T,) [rad].
        position: (T,) [rad].
    """
    back = max(CAME_BACK_RAD, 4.0 * np.nan_to_num(noise_std(position)), 1.5 * np.nan_to_num(quantum(position)))
    found = []
    for before, turn, after in _turns(target):
        way = np.sign(target[turn] - target[before])
        # how far the joint went on, and where it came back from there
        x = way * position[turn : after + 1]
        peak = np.maximum.accumulate(x)
        came = np.flatnonzero(peak - x > back)
        travelled = way * (target[turn] - target[turn + came[0]]) if len(came) else way * (target[turn] - target[after])
        found.append(max(0.0, float(travelled) - back))
    return float(np.median(found)) if len(found) >= TURNS_LEAST else np.nan


def _turns(target: np.ndarray) -> list[tuple[int, int, int]]:
    """(turn before, turn, turn after) of a series, each a travel of TURN_RAD or more apart; ends count as turns."""
    ends, extreme, way = [0], 0, 0
    for i, value in enumerate(target):
        if not np.isfinite(value):
            continue
        gone = value - target[extreme]
        if way == 0:
            if abs(gone) > TURN_RAD:
                way, extreme = (1 if gone > 0 else -1), i
        elif way * gone >= 0:
            extreme = i
        elif -way * gone > TURN_RAD:
            ends.append(extreme)
            way, extreme = -way, i
    ends.append(extreme)
    return [(a, b, c) for a, b, c in zip(ends, ends[1:], ends[2:], strict=False) if b > a and c > b]


def resting(log: RunLog, rows: np.ndarray) -> np.ndarray:
    """Where each joint rests under a target that stays, (T, joints) bool."""
    sent, velocity = log.sent[rows], log.joint_velocity[rows]
    ticks = max(2, round(REST_S / log.spec.control_period_s))
    still = np.zeros(sent.shape, dtype=bool)
    if len(rows) <= ticks:
        return still
    windows = np.lib.stride_tricks.sliding_window_view(sent, ticks + 1, axis=0)
    still[ticks:] = np.ptp(windows, axis=-1) < REST_RAD
    return still & (np.abs(velocity) < REST_RAD_S) & np.isfinite(log.joint_position[rows])


def gravity_torque(simulation: WindowedSimulation, position: np.ndarray) -> np.ndarray:
    """Torque that holds each pose against gravity, the base held as it is at home, (T, joints) [N m]."""
    import mujoco

    library = mujoco
    plant = simulation.plant
    data, built = library.MjData(plant.model), plant.built  # type: ignore[attr-defined]
    out = np.empty(position.shape)
    for row, angles in enumerate(position):
        data.qpos[:] = built.home_qpos
        data.qpos[built.qpos_ids] = angles - plant.offset
        library.mj_forward(plant.model, data)  # type: ignore[attr-defined]
        out[row] = data.qfrc_bias[built.dof_ids]
    return out


def static_offsets(log: RunLog, simulation: WindowedSimulation) -> dict[str, tuple[float, float]]:
    """Of joints that rest: target less position, and what is left of it without load / kp, medians [rad].

    The load is gravity's where the base is held, and what friction of the model holds is explained with it; else it is
    the torque that the motor tells.
    """
    rows = np.flatnonzero(log.run)
    still, out = resting(log, rows), {}
    params = simulation.plant.params
    kp, holds = params.kp, np.broadcast_to(params.friction + params.stiction, np.shape(params.kp))
    for j, name in enumerate(log.spec.robot.joint_names):
        at = rows[still[:, j]]
        if len(at) < RESTS_LEAST or not kp[j] > 0:
            continue
        at = at[:: max(1, len(at) // RESTS_MOST)]
        sag = log.sent[at, j] - log.joint_position[at, j]
        if simulation.base_held:
            known = np.isfinite(log.joint_position[at]).all(axis=1)
            load = np.full(len(at), np.nan)
            load[known] = gravity_torque(simulation, log.joint_position[at[known]])[:, j]
        else:
            load = log.joint_torque[at, j]
        left = sag - load / kp[j]
        if simulation.base_held:
            left -= np.clip(left, -holds[j] / kp[j], holds[j] / kp[j])
        out[name] = (float(np.median(sag)), float(np.nanmedian(left)) if np.isfinite(left).any() else np.nan)
    return out


def two_way_motion(log: RunLog, simulation: WindowedSimulation, late_s: float) -> dict[str, dict[str, float]]:
    """By joint: `friction_nm`, `nominal_nm`, `friction_rad`, `loop_rad`, `dead_rad`; NaN where it cannot be told.

    `friction_nm` is of the measured torque, or where there is none of the controller's, where it is below its limit;
    `friction_rad` of target less position; `loop_rad` is the full width of the loop of position over target.

    Args:
        late_s: from the arrival of a target to what is measured of it, as assumed [s].
    """
    rows = np.flatnonzero(log.run)
    target, params = in_force(log, rows, late_s), simulation.plant.params
    position, velocity, torque = log.joint_position[rows], log.joint_velocity[rows], log.joint_torque[rows]
    asked = params.kp * (target - position) - params.kd * velocity
    effort = np.where(np.abs(asked) < params.torque_limit, asked, np.nan)
    out = {}
    for j, name in enumerate(log.spec.robot.joint_names):
        speed = np.abs(velocity[:, j])
        goes = (speed > MOVING_RAD_S) & (speed < FAST_RAD_S)
        direction = np.where(goes, np.sign(velocity[:, j]), 0.0)
        wanted = np.sign(np.gradient(target[:, j])) if len(rows) > 1 else np.zeros(len(rows))
        told = torque[:, j] if np.isfinite(torque[:, j]).any() else effort[:, j]
        # rising, a joint lags below its target
        loop = -2.0 * two_way(target[:, j], np.where(np.isfinite(wanted), wanted, 0.0), position[:, j])
        viscous = float(params.damping[j] * np.median(speed[goes])) if goes.any() else 0.0
        out[name] = {
            "friction_nm": two_way(position[:, j], direction, told),
            "nominal_nm": float(params.friction[j]) + viscous,
            "friction_rad": two_way(position[:, j], direction, target[:, j] - position[:, j]),
            "loop_rad": loop,
            "dead_rad": dead_travel(target[:, j], position[:, j]),
        }
    return out


def replayed(replay: Replay, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Of each joint's replayed positions: `rmse`, `mae` [rad], `correlation` and `cosine` of the motion in a window."""
    error = replay.position_sim - replay.position
    moved, moved_sim = replay.position - replay.start[:, None], replay.position_sim - replay.start[:, None]
    return {
        name: {
            "rmse": rms(error[..., j]),
            "mae": float(np.mean(np.abs(error[..., j]))),
            "correlation": correlation(moved[..., j], moved_sim[..., j]),
            "cosine": cosine(moved[..., j], moved_sim[..., j]),
            "moves": rms(moved[..., j]),
        }
        for j, name in enumerate(names)
    }


def _worst(values: dict[str, float], *, least: bool = False) -> tuple[str, float | None]:
    known = {name: v for name, v in values.items() if np.isfinite(v)}
    if not known:
        return "", None
    name = (min if least else max)(known, key=lambda n: known[n] if least else abs(known[n]))
    return name, known[name]


def _replay_figures(found: dict[str, dict[str, float]], which: str, said: str, *, judged: bool) -> list[Figure]:
    """Worst joint and mean over joints of what `replayed` found; `which` goes before the keys."""
    figures = []
    for key, what in (("rmse", "RMSE"), ("mae", "mean absolute error")):
        values = {name: v[key] for name, v in found.items()}
        where, value = _worst(values)
        bound = judged and key == "rmse"
        figures += [
            Figure(
                key=f"{which}position_{key}_worst_rad",
                what=f"{what} of the worst joint's position, {said}",
                value=value,
                unit="rad",
                good=WORST_GOOD_RAD if bound else None,
                poor=WORST_POOR_RAD if bound else None,
                where=where,
            ),
            Figure(
                key=f"{which}position_{key}_rad",
                what=f"{what} of positions, {said}, mean over the joints",
                value=float(np.mean(list(values.values()))),
                unit="rad",
                good=POSITION_GOOD_RAD if bound else None,
                poor=POSITION_POOR_RAD if bound else None,
            ),
        ]
    for key in ("correlation", "cosine"):
        where, value = _worst({name: v[key] for name, v in found.items() if v["moves"] > MOVES_RAD}, least=True)
        bound = judged and key == "correlation"
        figures.append(
            Figure(
                key=f"{which}position_{key}",
                what=f"{key} of the motion, {said}, the worst of the joints that move",
                value=value,
                unit="",
                good=CORRELATION_GOOD if bound else None,
                poor=CORRELATION_POOR if bound else None,
                at_least=True,
                where=where,
            )
        )
    return figures


def actuator_layer(
    log: RunLog,
    simulation: WindowedSimulation,
    replay: Replay,
    aligned: Replay | None,
    names: tuple[str, ...],
    late_s: float,
) -> tuple[Layer, dict[str, Any]]:
    """(the layer, its figures by joint for report.json). The delay is the action path's: joints are judged without it.

    Args:
        log: with the simulation's joints in its order.
        simulation: of the log.
        replay: the targets replayed, joints as in `names`.
        aligned: the same with the delay that fits best; None where that is the one assumed, or none does.
        names: of the joints that were measured.
        late_s: from the arrival of a target to what is measured of it [s].
    """
    best = replay if aligned is None else aligned
    found = replayed(best, names)
    figures = _replay_figures(found, "", "targets replayed with the delay that fits best", judged=True)
    figures += _replay_figures(
        replayed(replay, names), "unaligned_", "targets replayed with the delay assumed", judged=False
    )
    velocity = rms(best.velocity_sim - best.velocity)
    figures.append(
        Figure(
            key="velocity_rmse_rad_s",
            what="RMSE of velocities, targets replayed with the delay that fits best",
            value=velocity,
            unit="rad/s",
            good=VELOCITY_GOOD_RAD_S,
            poor=VELOCITY_POOR_RAD_S,
        )
    )
    offsets = {k: v for k, v in static_offsets(log, simulation).items() if k in names}
    motion = {k: v for k, v in two_way_motion(log, simulation, late_s).items() if k in names}
    sag, offset = (_worst({name: pair[k] for name, pair in offsets.items()}) for k in (0, 1))
    load = "gravity" if simulation.base_held else "the measured torque"
    limits = dict(zip(log.spec.robot.joint_names, log.spec.robot.column("torque_limit_nm"), strict=True))
    if not simulation.base_held:
        # the load comes and goes with the motion, and would be taken for friction and play
        motion = {n: dict.fromkeys(v, np.nan) for n, v in motion.items()}
    more = {n: (v["friction_nm"] - v["nominal_nm"]) / limits[n] for n, v in motion.items()}
    rough = max((n for n in more if np.isfinite(more[n])), key=lambda n: more[n], default="")
    nominal, limit = (motion[rough]["nominal_nm"], limits[rough]) if rough else (0.0, 0.0)
    drag, loop, dead = (_worst({n: v[k] for n, v in motion.items()}) for k in ("friction_rad", "loop_rad", "dead_rad"))
    figures += [
        Figure(
            key="static_offset_rad",
            what=f"target less position at rest, less what {load} explains, the worst",
            value=offset[1],
            unit="rad",
            good=POSITION_GOOD_RAD,
            poor=POSITION_POOR_RAD,
            where=offset[0],
        ),
        Figure(
            key="static_sag_rad",
            what="target less position at rest, the worst",
            value=sag[1],
            unit="rad",
            where=sag[0],
        ),
        Figure(
            key="friction_two_way_nm",
            what="friction: half the difference of the torque up and down, farthest above the model's",
            value=motion[rough]["friction_nm"] if rough else None,
            unit="N m",
            good=nominal + FRICTION_GOOD * limit if rough else None,
            poor=nominal + FRICTION_POOR * limit if rough else None,
            where=rough,
        ),
        Figure(
            key="friction_two_way_rad",
            what="friction and lag: half the difference of target less position up and down, the worst",
            value=drag[1],
            unit="rad",
            where=drag[0],
        ),
        Figure(
            key="hysteresis_rad",
            what="width of the loop of position over target, the worst",
            value=loop[1],
            unit="rad",
            where=loop[0],
        ),
        Figure(
            key="dead_travel_rad",
            what="backlash: how far a target goes back before the joint does, the worst",
            value=dead[1],
            unit="rad",
            where=dead[0],
        ),
    ]
    by_joint = {
        name: {
            **found[name],
            **motion[name],
            "sag_rad": offsets.get(name, (np.nan, np.nan))[0],
            "static_offset_rad": offsets.get(name, (np.nan, np.nan))[1],
        }
        for name in names
    }
    joints = {name: found[name]["rmse"] / WORST_GOOD_RAD for name in names}
    for name, (_, left) in offsets.items():
        if np.isfinite(left):
            joints[name] = max(joints[name], abs(left) / POSITION_GOOD_RAD)
    return Layer(name=LayerName.ACTUATORS, figures=tuple(figures), joints=joints), by_joint
