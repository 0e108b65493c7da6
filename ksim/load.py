"""Configurations from plain values and YAML files.

A file names a task and changes some of it; `--set key=value` changes it further. See toolkit/settings.py for how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ksim import legacy
from ksim.config import Config
from ksim.errors import ConfigError
from ksim.tasks import known, task_config
from toolkit.errors import SettingsError
from toolkit.files import packaged
from toolkit.settings import apply_overrides, merge
from toolkit.yaml_file import YamlError, read_yaml


def from_dict(data: Any, base: Config | None = None) -> Config:
    """A configuration from plain values: over `base`, or over the task that they name.

    A dictionary that `Config.to_dict` made gives the same configuration. One of an older version is translated.

    Raises:
        SettingsError: a key is unknown (the nearest is named), ill-typed or out of range.
    """
    if not isinstance(data, Mapping):
        return merge(base or Config(), data)
    if base is None and {f.name for f in fields(Config)} - {"calibration"} <= set(data):
        known(data["task"])  # its terms may be classes of another package
        return Config.from_dict(data)  # the whole of it: what the task has gained since is not in it
    if base is None:
        base = task_config(data.get("task", legacy.TASK))
    return merge(base, data)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a YAML file, with `key=value` overrides (dotted keys, YAML values).

    One that ships is found from any folder: `configs/kbot_walk.yaml`.

    Raises:
        SettingsError: the file is missing or not YAML, or a key is wrong.
    """
    path = packaged(path)
    what = "a YAML configuration such as configs/kbot_stand.yaml"
    if not path.exists():
        raise ConfigError(f"{path}: no such file; expected {what}")
    try:
        data = read_yaml(path, what)
        named = [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "task"]
        data = {} if data is None else data
        if named and isinstance(data, Mapping):
            data = {**data, "task": named[-1]}  # the task comes first: the file changes it
        config = from_dict(data)
    except YamlError as error:
        raise ConfigError(str(error)) from error
    except SettingsError as error:
        raise ConfigError(f"{path}: {error}") from error
    return apply_overrides(config, overrides)
