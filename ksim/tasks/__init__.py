"""The tasks: each a function that returns its whole configuration."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable

from ksim.config import Config
from ksim.errors import ConfigError
from ksim.tasks.stand import stand
from ksim.tasks.walk import walk

TASKS: dict[str, Callable[[], Config]] = {"kbot_stand": stand, "kbot_walk": walk}
# Other packages name their tasks in this group of entry points: `my_task = "my_package.tasks:my_task"`.
ENTRY_POINTS = "ksim.tasks"


def register(name: str, task: Callable[[], Config]) -> None:
    """Make a task of one's own known by a name."""
    TASKS[name] = task


def known(name: object) -> bool:
    """Whether there is a task of this name; where it is another package's, that is imported, and its terms with it."""
    if not isinstance(name, str):
        return False
    if name not in TASKS:
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
            TASKS.setdefault(entry.name, entry.load())
    return name in TASKS


def task_config(name: object) -> Config:
    """A task's own configuration.

    Raises:
        ConfigError: there is no such task; the nearest is named.
    """
    if not known(name):
        names = [*TASKS, *(entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS))]
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(names)}"
        raise ConfigError(
            f"configuration key task: got {name!r:.100}; {hint}; one of your own: ksim --with FILE.py VERB ..."
        )
    return TASKS[str(name)]()
