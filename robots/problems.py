"""What is missing or wrong in a robot folder, gathered, so that all of it is told at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from robots.errors import RobotLoadError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is missing or wrong.

    Attributes:
        what: what was got, what was expected, what to do.
        file: in which file; None where the text says it.
        kind: whose it is, "joint" or "actuator type"; empty for the file's own.
        names: of those that have it.
        place: where in the file the examples go.
        examples: lines to paste there, one for each name or one for all.
    """

    what: str
    file: Path | None = None
    kind: str = ""
    names: tuple[str, ...] = ()
    place: str = ""
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line; of several examples the first."""
        who = f"{self.kind}{'s' if len(self.names) > 1 else ''} {', '.join(self.names)}: " if self.names else ""
        more = " and so on" if len(self.examples) > 1 else ""
        example = f"; for example {self.examples[0]}{more} {self.place}" if self.examples else ""
        return f"{f'{self.file}: ' if self.file else ''}{who}{self.what}{example}".rstrip()


def refusal(problem: Problem) -> RobotLoadError:
    """The error that one problem alone is."""
    return RobotLoadError(str(problem), [problem])


class Problems:
    """Those of one robot folder.

    Args:
        folder: of the robot.

    Attributes:
        met: how many were noted, the same one again included.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: list[Problem] = []
        self.met = 0

    def add(self, problem: Problem) -> None:
        """Note one; those that differ in their names alone become one."""
        self.met += 1
        for i, other in enumerate(self._found):
            if replace(other, names=(), examples=()) == replace(problem, names=(), examples=()):
                self._found[i] = replace(
                    other,
                    names=tuple(dict.fromkeys(other.names + problem.names)),
                    examples=tuple(dict.fromkeys(other.examples + problem.examples)),
                )
                return
        self._found.append(problem)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """What is raised within is noted, and what follows goes on."""
        try:
            yield
        except RobotLoadError as error:
            for problem in error.problems or (Problem(what=str(error)),):
                self.add(problem)

    def check(self) -> None:
        """Refuse the folder if there is any problem.

        Raises:
            RobotLoadError: all of them, in one line; each is in its `problems`.
        """
        if not self._found:
            return
        if len(self._found) == 1:
            raise RobotLoadError(str(self._found[0]), self._found)
        inside = (f"robot folder {self._folder}: ", f"{self._folder}/")
        texts = [str(p).replace(inside[0], "", 1).replace(inside[1], "", 1) for p in self._found]
        told = "; ".join(f"({i}) {text}" for i, text in enumerate(texts, 1))
        raise RobotLoadError(
            f"robot folder {self._folder}: {len(self._found)} things are missing or wrong: {told}; "
            f"ksim inspect {self._folder} lists them one by one",
            self._found,
        )
