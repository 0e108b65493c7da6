"""What a model file says about a robot, read with the standard library: MJCF or URDF.

MuJoCo's rules are followed where they decide a figure: nested default classes, childclass, degrees or
radians, included files. What cannot be followed is refused rather than guessed.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.parsers import expat

from robots.errors import RobotLoadError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 200  # a chain of a hundred bodies, each in a frame
MAX_INCLUDES = 16
_FREE_QPOS = 7
_QPOS_SIZE = {"free": _FREE_QPOS, "ball": 4, "slide": 1, "hinge": 1}


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """One hinge of the model.

    Attributes:
        name: the joint's name.
        body: the body that it moves.
        range_rad: mechanical limits [rad], None where the model has none.
        armature: rotor inertia [kg m^2], 0 where the model has none.
        friction_nm: Coulomb friction [N m].
        damping: viscous friction [N m s/rad].
        follows: the joint that it follows by a mimic or an equality; empty for none.
        undriven: the model has actuators, and none for this joint.
        of_robot: it is in a tree of the robot's; False for the hinge of a door beside it.
    """

    name: str
    body: str
    range_rad: tuple[float, float] | None
    armature: float
    friction_nm: float
    damping: float
    follows: str = ""
    undriven: bool = False
    of_robot: bool = True


@dataclass(frozen=True, kw_only=True)
class Description:
    """A model file without its geometry.

    The robot is the trees of bodies that carry the joints with a motor. What else an MJCF has, a crate, a table or a
    door, is not told of but by its hinges.

    Attributes:
        hinges: all hinges, in document order.
        slides: names of the robot's slide and ball joints, which no motor law here drives.
        floating: whether a body of the robot has a free joint.
        free_joint: its name; empty where it has none, or there is no such joint.
        bodies: names of the robot's bodies or links, in document order.
        root: the outermost body that carries the first hinge.
        sites: (site, body) of every named site of these bodies.
        mass_kg: their mass, 0 where only MuJoCo knows it: it hangs on a volume or is scaled.
        keyframes: of each keyframe that has positions, its name and those of the hinges [rad].
        others: names of the bodies on the world that are not the robot's.
    """

    hinges: tuple[Hinge, ...]
    slides: tuple[str, ...]
    floating: bool
    bodies: tuple[str, ...]
    root: str
    sites: tuple[tuple[str, str], ...]
    mass_kg: float
    keyframes: tuple[tuple[str, dict[str, float]], ...] = ()
    free_joint: str = ""
    others: tuple[str, ...] = ()


def read_xml(path: Path) -> ET.Element:
    """The root of a model file, with the files that an MJCF includes in their places.

    Raises:
        RobotLoadError: a file is missing, too large, too deep or not XML, or declares entities.
    """
    root = _read_xml(path, path.parent, ())
    _refuse_depth(path, root)
    return root


def included(path: Path) -> set[Path]:
    """The files that an MJCF includes, with those that they include; none of a file that cannot be read."""
    found: set[Path] = set()
    todo = [path]
    while todo and len(found) < 100:
        one = todo.pop()
        try:
            data = one.read_bytes()
            _refuse_entities(one, data)
            elements = list(ET.fromstring(data).iter("include"))
        except (OSError, ET.ParseError, expat.ExpatError, ValueError, LookupError, RobotLoadError):
            continue
        new = {(path.parent / element.get("file", "")).resolve() for element in elements} - found
        found |= new
        todo += new
    return found - {path.resolve()}


def describe(path: Path, root: ET.Element, driven: Collection[str] = ()) -> Description:
    """Read a robot's model.

    Args:
        path: the file, for messages.
        root: its root, from `read_xml`.
        driven: names of the joints with a motor: the robot is the trees that carry them. Where there are none of
            these, it is the trees that have hinges.

    Raises:
        RobotLoadError: the file is neither MJCF nor URDF, or uses what cannot be followed.
    """
    if root.tag == "mujoco":
        return _Mjcf(path, root).describe(driven)
    if root.tag == "robot":
        return _describe_urdf(path, root)
    raise RobotLoadError(f"{path}: root element <{root.tag}>; expected <mujoco> (MJCF) or <robot> (URDF)")


def _read_xml(path: Path, folder: Path, above: tuple[Path, ...]) -> ET.Element:
    if path in above:
        raise RobotLoadError(f"{path}: includes itself; expected a tree of files")
    if len(above) > MAX_INCLUDES:
        raise RobotLoadError(f"{path}: included over more than {MAX_INCLUDES} files; expected fewer")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RobotLoadError(f"{path}: more than {MAX_BYTES} bytes; expected a model without inline meshes")
        data = path.read_bytes()
        _refuse_entities(path, data)
        root = ET.fromstring(data)
    except OSError as error:
        raise RobotLoadError(f"{path}: cannot be read ({error.strerror}); expected a model file") from error
    except (ET.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise RobotLoadError(f"{path}: not well-formed XML ({error}); repair the file") from error
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag != "include":
                continue
            # MuJoCo takes included files from the main file's folder, and drops their outermost element.
            included = _read_xml(folder / _need(path, child, "file"), folder, (*above, path))
            at = list(parent).index(child)
            parent.remove(child)
            for offset, element in enumerate(included):
                parent.insert(at + offset, element)
    return root


def _refuse_depth(path: Path, root: ET.Element) -> None:
    """What follows goes down the tree by recursion, which Python bounds."""
    level, depth = [root], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RobotLoadError(
                f"{path}: elements nested more than {MAX_DEPTH} deep; expected a robot's tree of bodies"
            )
        level = [child for element in level for child in element]


def _refuse_entities(path: Path, data: bytes) -> None:
    def refuse(name: str, *_: object) -> None:
        raise RobotLoadError(f"{path}: declares the XML entity {name!r}; expected a model file without entities")

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    parser.Parse(data, True)


def _need(path: Path, element: ET.Element, attribute: str) -> str:
    value = element.get(attribute)
    if not value:
        raise RobotLoadError(f"{path}: <{element.tag}> without {attribute}; give it one")
    return value


def _numbers(path: Path, what: str, text: str, count: int | None = None) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)) or (count is not None and len(values) != count):
        expected = f"{count} finite numbers" if count else "finite numbers"
        raise RobotLoadError(f"{path}: {what}: got {text!r:.100}, expected {expected}")
    return values


@dataclass(eq=False)
class _Tree:
    """A body on the world with all that hangs on it, while it is read."""

    hinges: list[Hinge] = field(default_factory=list)
    slides: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    sites: list[tuple[str, str]] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    floating: bool = False
    free_joint: str = ""


def _outermost(parent: ET.Element) -> Iterator[ET.Element]:
    """The bodies that lie on the world; frames are looked through."""
    for element in parent:
        if element.tag == "body":
            yield element
        elif element.tag == "frame":
            yield from _outermost(element)


class _Mjcf:
    """One MJCF file while it is read."""

    def __init__(self, path: Path, root: ET.Element) -> None:
        self.path = path
        self.root = root
        # class name -> element tag -> attributes, with everything inherited
        self.defaults: dict[str, dict[str, dict[str, str]]] = {"main": {}}
        for section in root.findall("default"):
            self._read_default(section, section.get("class", "main"), {})
        self.degrees, self.autolimits = True, True
        for compiler in root.findall("compiler"):
            self.degrees = compiler.get("angle", "degree" if self.degrees else "radian") == "degree"
            self.autolimits = compiler.get("autolimits", "true" if self.autolimits else "false") == "true"

    def _read_default(self, section: ET.Element, name: str, parent: dict[str, dict[str, str]]) -> None:
        own = self.defaults.setdefault(name, {tag: dict(values) for tag, values in parent.items()})
        for element in section:
            if element.tag != "default":
                own.setdefault(element.tag, {}).update({k: v for k, v in element.attrib.items() if k != "class"})
        for element in section.findall("default"):
            self._read_default(element, _need(self.path, element, "class"), own)

    def _attributes(self, element: ET.Element, childclass: str, tag: str = "") -> dict[str, str]:
        name = element.get("class", childclass)
        if name not in self.defaults:
            known = ", ".join(sorted(self.defaults))
            raise RobotLoadError(f"{self.path}: default class {name!r}: no such class; there is: {known}")
        return {**self.defaults[name].get(tag or element.tag, {}), **element.attrib}

    def _bodies(self, parent: ET.Element, childclass: str) -> Iterator[tuple[ET.Element, str]]:
        """Every body with the class of its children, in document order; frames are looked through."""
        for element in parent:
            if element.tag in ("replicate", "attach", "composite", "flexcomp"):
                raise RobotLoadError(
                    f"{self.path}: <{element.tag}> is not supported; save the compiled model as plain MJCF first"
                )
            inner = element.get("childclass", childclass)
            if element.tag == "body":
                yield element, inner
            if element.tag in ("body", "frame"):
                yield from self._bodies(element, inner)

    def _inside(self, parent: ET.Element, childclass: str) -> Iterator[tuple[ET.Element, str]]:
        """The elements of one body with their class, without its child bodies."""
        for element in parent:
            if element.tag == "frame":
                yield from self._inside(element, element.get("childclass", childclass))
            elif element.tag != "body":
                yield element, childclass

    def describe(self, driven: Collection[str]) -> Description:
        trees: list[_Tree] = []
        order: list[tuple[str, str]] = []  # (name, type) of every joint, for keyframes
        for world in self.root.findall("worldbody"):
            outermost = {id(body) for body in _outermost(world)}
            for body, childclass in self._bodies(world, world.get("childclass", "main")):
                if id(body) in outermost:
                    trees.append(_Tree())
                self._add(trees[-1], order, body, childclass)
        carrying = [tree for tree in trees if any(hinge.name in driven for hinge in tree.hinges)]
        own = carrying or [tree for tree in trees if tree.hinges] or trees
        if not own:
            raise RobotLoadError(f"{self.path}: no bodies; expected a robot in <worldbody>")
        mass = sum((mass for tree in own for mass in tree.masses), 0.0)
        if any(compiler.get("settotalmass", "-1").strip()[:1] != "-" for compiler in self.root.findall("compiler")):
            mass = math.nan  # MuJoCo scales what is written
        moved = {element.get("joint") for section in self.root.findall("actuator") for element in section}
        follows = self._followers(driven, moved)
        some = any(hinge.name in moved for tree in trees for hinge in tree.hinges)
        return Description(
            hinges=tuple(
                replace(
                    hinge,
                    follows=follows.get(hinge.name, ""),
                    undriven=some and hinge.name not in moved,
                    of_robot=tree in own,
                )
                for tree in trees
                for hinge in tree.hinges
            ),
            slides=tuple(name for tree in own for name in tree.slides),
            floating=any(tree.floating for tree in own),
            free_joint=next((tree.free_joint for tree in own if tree.free_joint), ""),
            bodies=tuple(name for tree in own for name in tree.bodies),
            root=own[0].bodies[0],
            sites=tuple(site for tree in own for site in tree.sites),
            mass_kg=mass if math.isfinite(mass) else 0.0,
            keyframes=self._keyframes(order),
            others=tuple(tree.bodies[0] or "unnamed" for tree in trees if tree not in own),
        )

    def _followers(self, driven: Collection[str], moved: Collection[str | None]) -> dict[str, str]:
        """Joints that an equality of two joints makes follow another: MuJoCo's joint1 follows its joint2.

        It holds both ways: where joint1 has a motor and joint2 has none, joint2 follows.
        """
        found = {}
        for joint in (joint for section in self.root.findall("equality") for joint in section.findall("joint")):
            told = self._attributes(joint, "main", "equality")
            one, two = told.get("joint1", ""), told.get("joint2", "")
            if two and told.get("active", "true") != "false":
                turned = one in driven and two not in driven and two not in moved
                found |= {two: one} if turned else {one: two}
        return found

    def _add(self, tree: _Tree, order: list[tuple[str, str]], body: ET.Element, childclass: str) -> None:
        """Take up one body."""
        name = body.get("name", "")
        tree.bodies.append(name)
        inertial, own = None, 0.0
        for element, inner in self._inside(body, childclass):
            if element.tag in ("joint", "freejoint"):
                attributes = self._attributes(element, inner) if element.tag == "joint" else {"type": "free"}
                kind = attributes.get("type", "hinge")
                order.append((element.get("name", ""), kind))
                if kind == "hinge":
                    tree.hinges.append(self._hinge(element, attributes, name))
                elif kind == "free":
                    tree.floating, tree.free_joint = True, element.get("name", "")
                else:
                    tree.slides.append(element.get("name", ""))
            elif element.tag == "inertial":
                inertial = _numbers(self.path, f"body {name}: mass", _need(self.path, element, "mass"), 1)[0]
            elif element.tag == "geom":
                own += self._geom_mass(self._attributes(element, inner), name)
            elif element.tag == "site" and element.get("name"):
                tree.sites.append((element.attrib["name"], name))
        # geoms give mass only to a body without an inertial
        tree.masses.append(own if inertial is None else inertial)

    def _geom_mass(self, attributes: dict[str, str], body: str) -> float:
        """Mass that a geom gives to a body without an inertial [kg], NaN for a mesh without one."""
        what = f"body {body}: geom"
        if "mass" in attributes:
            return _numbers(self.path, f"{what} mass", attributes["mass"], 1)[0]
        density = _numbers(self.path, f"{what} density", attributes.get("density", "1000"), 1)[0]
        kind = attributes.get("type", "sphere")
        size = _numbers(self.path, f"{what} size", attributes.get("size", "0"))
        if density == 0 or kind in ("plane", "hfield"):
            return 0.0
        if "fromto" in attributes:
            ends = _numbers(self.path, f"{what} fromto", attributes["fromto"], 6)
            half = math.dist(ends[:3], ends[3:]) / 2
            size = [size[0], half] if kind in ("capsule", "cylinder") else [size[0], size[0], half]
        size = [*size, 0.0, 0.0][:3]
        volumes = {
            "sphere": 4 / 3 * math.pi * size[0] ** 3,
            "capsule": math.pi * size[0] ** 2 * (2 * size[1] + 4 / 3 * size[0]),
            "cylinder": math.pi * size[0] ** 2 * 2 * size[1],
            "ellipsoid": 4 / 3 * math.pi * math.prod(size),
            "box": 8 * math.prod(size),
        }
        return density * volumes.get(kind, math.nan)

    def _hinge(self, element: ET.Element, attributes: dict[str, str], body: str) -> Hinge:
        name = _need(self.path, element, "name")

        def number(key: str) -> float:
            # damping may be a polynomial in newer files; its first number is the linear term
            return _numbers(self.path, f"joint {name}: {key}", attributes.get(key, "0"))[0]

        limits = None
        limited = attributes.get("limited", "auto")
        if limited == "true" or (limited == "auto" and self.autolimits and "range" in attributes):
            low, high = _numbers(self.path, f"joint {name}: range", attributes.get("range", "0 0"), 2)
            limits = (math.radians(low), math.radians(high)) if self.degrees else (low, high)
        return Hinge(
            name=name,
            body=body,
            range_rad=limits,
            armature=number("armature"),
            friction_nm=number("frictionloss"),
            damping=number("damping"),
        )

    def _keyframes(self, order: list[tuple[str, str]]) -> tuple[tuple[str, dict[str, float]], ...]:
        size = sum(_QPOS_SIZE[kind] for _, kind in order if kind in _QPOS_SIZE)
        found = []
        for key in (key for section in self.root.findall("keyframe") for key in section.findall("key")):
            if "qpos" not in key.attrib:
                continue
            name = key.get("name", "unnamed")
            given = len(key.attrib["qpos"].split())
            if given != size:
                raise RobotLoadError(
                    f"{self.path}: keyframe {name}: qpos: got {given} numbers, expected {size}, as many as the joints "
                    "of the model have (7 for a free one, 4 for a ball); correct the keyframe or delete it"
                )
            qpos = _numbers(self.path, f"keyframe {name}: qpos", key.attrib["qpos"], size)
            positions, at = {}, 0
            for joint, kind in order:
                if kind == "hinge":
                    positions[joint] = qpos[at]
                at += _QPOS_SIZE.get(kind, 0)
            found.append((name, positions))
        return tuple(found)


def _describe_urdf(path: Path, root: ET.Element) -> Description:
    if any("xacro" in element.tag for element in root.iter()):
        raise RobotLoadError(
            f"{path}: has xacro elements, which are yet to be worked out; expected plain URDF; make it with "
            "xacro FILE > robot.urdf"
        )
    links = [_need(path, link, "name") for link in root.findall("link")]
    if not links:
        raise RobotLoadError(f"{path}: no links; expected a URDF robot")
    hinges: list[Hinge] = []
    slides: list[str] = []
    children: set[str] = set()
    floating = False
    for joint in root.findall("joint"):
        name, kind = _need(path, joint, "name"), _need(path, joint, "type")
        child, parent, mimic = joint.find("child"), joint.find("parent"), joint.find("mimic")
        if child is None or parent is None:
            raise RobotLoadError(f"{path}: joint {name}: no <parent> or no <child>; give both")
        body = _need(path, child, "link")
        children.add(body)
        floating = floating or kind == "floating"
        if kind in ("prismatic", "planar"):
            slides.append(name)
        if kind not in ("revolute", "continuous"):
            continue
        limit, dynamics = joint.find("limit"), joint.find("dynamics")

        def number(element: ET.Element | None, key: str, name: str = name) -> float:
            text = "0" if element is None else element.get(key, "0")
            return _numbers(path, f"joint {name}: {key}", text, 1)[0]

        bounded = kind == "revolute" and limit is not None
        hinges.append(
            Hinge(
                name=name,
                body=body,
                range_rad=(number(limit, "lower"), number(limit, "upper")) if bounded else None,
                armature=0.0,
                friction_nm=number(dynamics, "friction"),
                damping=number(dynamics, "damping"),
                follows="" if mimic is None else _need(path, mimic, "joint"),
            )
        )
    roots = [link for link in links if link not in children]
    if len(roots) != 1:
        raise RobotLoadError(f"{path}: root links: got {', '.join(roots) or 'none'}, expected exactly one")
    mass = 0.0
    for link in root.findall("link"):
        element = link.find("inertial/mass")
        if element is not None:
            mass += _numbers(path, f"link {link.get('name')}: mass", _need(path, element, "value"), 1)[0]
        elif link.find("collision") is not None:
            mass = math.nan  # MuJoCo takes it from the volume
    return Description(
        hinges=tuple(hinges),
        slides=tuple(slides),
        floating=floating,
        bodies=tuple(links),
        root=roots[0],
        sites=(),
        mass_kg=mass if math.isfinite(mass) else 0.0,
    )
