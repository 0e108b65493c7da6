"""What was understood of a robot folder, in one line: what the loader guessed is called a guess."""

from __future__ import annotations

from robots.load import Origin
from robots.model import BuiltModel


def understood(built: BuiltModel) -> str:
    """One line: base, IMU, feet, home pose, motors, passive joints, mass, meshes, and what else is in the file."""
    return "; ".join(" ".join(part.split()) for part in _parts(built) if part)


def _told(what: str, origin: Origin) -> str:
    return f"{what} ({'guess: ' if origin.guess else ''}{origin.how})"


def _meshes(built: BuiltModel) -> str:
    """What is said of meshes; nothing where the file names none."""
    if built.missing_meshes:
        return f"meshes left out: {', '.join(built.missing_meshes)}"
    return "all meshes are there" if built.names_meshes else ""


def _parts(built: BuiltModel) -> list[str]:
    model, spec, origins = built.model, built.spec, built.origins
    base = f"base: free joint {built.base_joint}" if built.base_body >= 0 else "base: fixed to the world"
    imu = spec.imu_site or model.body(built.imu_body).name
    own = [model.joint(i) for i in range(model.njnt) if model.jnt_bodyid[i] in built.bodies]
    driven = {*spec.joint_names, built.base_joint}
    passive = [joint.name or "unnamed" for joint in own if joint.name not in driven]
    others = [model.body(i).name or "unnamed" for i in range(1, model.nbody) if i not in built.bodies]
    return [
        f"robot {spec.name}",
        _told(base, origins.floating),
        _told(f"IMU: {imu} on body {model.body(built.imu_body).name}", origins.imu),
        _told(f"feet: {', '.join(built.foot_names) or 'none'}", origins.feet),
        _told(f"home: base at {built.standing_height_m:.3f} m", origins.home),
        f"{len(spec.joints)} motors",
        f"passive joints: {', '.join(passive) or 'none'}",
        f"{built.mass_kg:.2f} kg",
        "floor: added" if built.floor_added else "",
        _meshes(built),
        f"beside the robot: {', '.join(others)}" if others else "",
    ]
