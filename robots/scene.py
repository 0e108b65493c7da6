"""What a compiled robot stands on and is seen in: a floor, a sky and a light where its file has none.

Part of robots/model.py; MuJoCo is imported inside.
"""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

from robots.ground import SIDE_M, Ground

if TYPE_CHECKING:
    import mujoco

# Rubber on a hard floor; a foot with a higher priority brings its own.
FLOOR_FRICTION = (1.0, 0.005, 0.0001)


def find_or_add_floor(mjspec: mujoco.MjSpec, root: mujoco.MjsBody) -> tuple[str, bool]:
    """(name of the floor, whether it was added with a sky and a light because there was none)."""
    import mujoco

    flat = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
    floor = next((geom for geom in mjspec.worldbody.geoms if geom.type in flat), None)
    if floor is not None:
        floor.name = floor.name or "floor"
        return floor.name, False
    builtin = mujoco.mjtBuiltin
    if not any(t.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX for t in mjspec.textures):
        mjspec.add_texture(
            name="sky",
            type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
            builtin=builtin.mjBUILTIN_GRADIENT,
            rgb1=[0.62, 0.68, 0.74],
            rgb2=[0.93, 0.94, 0.95],
            width=64,
            height=384,
        )
    # a file may have a texture or a material of that name and no floor
    taken = {each.name for each in (*mjspec.textures, *mjspec.materials)}
    look = next(name for name in ("floor", "added_floor", "ksim2real_floor") if name not in taken)
    mjspec.add_texture(
        name=look,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=builtin.mjBUILTIN_CHECKER,
        mark=mujoco.mjtMark.mjMARK_EDGE,
        rgb1=[0.66, 0.68, 0.7],
        rgb2=[0.6, 0.62, 0.64],
        markrgb=[0.74, 0.76, 0.78],
        width=128,
        height=128,
    )
    material = mjspec.add_material(name=look, texrepeat=[1, 1], texuniform=True, reflectance=0.05)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = look
    # Only the light from straight above casts shadows, slanted ones speckle the floor; both follow the robot.
    for direction, brightness, shadow in (([0, 0, -1], 0.35, True), ([-0.65, 0.4, -0.65], 0.45, False)):
        root.add_light(
            pos=[0, 0, 3],
            dir=direction,
            mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM,
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            diffuse=[brightness] * 3,
            specular=[0.15, 0.15, 0.15],
            castshadow=shadow,
        )
    # MuJoCo's defaults, named because the file's own default class may say otherwise
    mjspec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0, 0, 0.05],
        material=look,
        rgba=[0.5, 0.5, 0.5, 1],
        group=0,
        contype=1,
        conaffinity=1,
        condim=3,
        priority=0,
        friction=FLOOR_FRICTION,
        solmix=1,
        solref=[0.02, 1],
        solimp=[0.9, 0.95, 0.001, 0.5, 2],
        margin=0,
        gap=0,
    )
    return "floor", True


def lay_ground(mjspec: mujoco.MjSpec, name: str, ground: Ground) -> None:
    """Make the floor of this name uneven; in the middle it is as high as before."""
    import mujoco

    heights = ground.heights()
    low, high = float(heights.min()), float(heights.max())
    span = max(high - low, 1e-6)
    mjspec.add_hfield(
        name="ground",
        size=[0.5 * SIDE_M, 0.5 * SIDE_M, span, 0.1],
        nrow=heights.shape[0],
        ncol=heights.shape[1],
        userdata=((heights - low) / span).ravel().tolist(),
    )
    floor = mjspec.geom(name)
    floor.type, floor.hfieldname = mujoco.mjtGeom.mjGEOM_HFIELD, "ground"
    floor.pos = [0.0, 0.0, float(floor.pos[2]) + low]
    floor.quat = [1.0, 0.0, 0.0, 0.0]
