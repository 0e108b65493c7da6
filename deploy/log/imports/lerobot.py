"""An episode of a LeRobot data set, layouts 2.x and 3.0: observation.state and action, read with pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploy.errors import LogError
from deploy.log.imports.mapping import Units
from deploy.log.imports.source import Garbage, Row, Source, require_file, require_names, vector

INFO = "meta/info.json"
STATE, ACTION, TIME, FRAME, EPISODE = "observation.state", "action", "timestamp", "frame_index", "episode_index"
SUFFIX = ".pos"
BATCH = 1000


class LeRobotEpisode(Source):
    """One episode. Its unit depends on how the robot was set up, which the data set does not say.

    Args:
        path: the data set's folder.
        episode: its number; None: the only one.
    """

    format: ClassVar[str] = "lerobot"
    units: ClassVar[Units] = Units(velocity="none", torque="none", gyro="rad/s")
    word: ClassVar[str] = "row"
    stamps: ClassVar[str] = (
        "nominal: frame_index / fps; when a reading was taken and when its command was sent is not told"
    )

    def __init__(self, path: Path, episode: int | None = None) -> None:
        super().__init__(path)
        what = f"the folder of a LeRobot data set, with {INFO}"
        if not path.is_dir():
            raise LogError(f"{path}: is no folder; expected {what}; name the folder")
        info_file = require_file(path / INFO, f"{INFO} of {what}")
        try:
            info = json.loads(info_file.read_bytes())
            features = info["features"]
            state, rate = features[STATE], float(info["fps"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LogError(
                f"{info_file}: not that of a LeRobot data set ({type(error).__name__}: {str(error)[:80]}); expected "
                f"fps, and {STATE} among features"
            ) from error
        if not 0 < rate <= 10_000:
            raise LogError(f"{info_file}: fps: got {rate:g}, expected a rate in hertz; repair the file")
        self.period_s = 1 / rate
        self.joints = self._names(info_file, state, STATE)
        self.has = frozenset()
        if ACTION in features:
            actions = self._names(info_file, features[ACTION], ACTION)
            if sorted(actions) != sorted(self.joints):
                odd = ", ".join(sorted(set(actions) ^ set(self.joints)))
                raise LogError(f"{info_file}: {ACTION} and {STATE} differ in {odd[:100]}; expected the same joints")
            self._action = [actions.index(name) for name in self.joints]
            self.has = frozenset({"target"})
        total = info.get("total_episodes")
        if episode is None and total != 1:
            raise LogError(f"{path}: {total} episodes; expected one; name it with --episode, from 0")
        self._episode = 0 if episode is None else episode
        self._places = self._find(path)
        if not self._places:
            raise LogError(f"{path}: no episode {self._episode}; it has {total}; name another with --episode, from 0")
        self.files = (info_file, *dict.fromkeys(file for file, _ in self._places))
        told = ("codebase_version", "robot_type", "fps")
        self.facts = {"episode": self._episode} | {k: info[k] for k in told if isinstance(info.get(k), (str, int))}

    @staticmethod
    def _names(path: Path, feature: Any, what: str) -> tuple[str, ...]:
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, dict):  # {"motors": [...]}
            names = next(iter(names.values()), None)
        found = require_names(path, names, f"names of {what}")
        return tuple(name.removesuffix(SUFFIX) for name in found)

    def _find(self, path: Path) -> list[tuple[Path, int]]:
        """(file, row group) that may hold rows of the episode, by the files' own statistics."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        own = sorted(path.glob(f"data/*/episode_{self._episode:06d}.parquet"))
        found = []
        for file in own or sorted(path.glob("data/*/file-*.parquet")):
            require_file(file, "a parquet file of the data set")
            try:
                parquet = ParquetFile(file)
                metadata, names = parquet.metadata, parquet.schema_arrow.names
                missing = [n for n in (STATE, TIME, EPISODE, *([ACTION] if self.has else [])) if n not in names]
                if missing:
                    raise LogError(f"{file}: no column {', '.join(missing)}; expected those of a LeRobot data set")
                column = next(k for k in range(metadata.num_columns) if metadata.schema.column(k).path == EPISODE)
                for group in range(metadata.num_row_groups):
                    told = metadata.row_group(group).column(column).statistics
                    if told is None or not told.has_min_max or told.min <= self._episode <= told.max:
                        found.append((file, group))
            except (ArrowException, OSError, ValueError) as error:
                reason = " ".join(str(error).split())[:100]
                raise LogError(f"{file}: not a parquet file ({reason}); expected one of a LeRobot data set") from error
        return found

    def rows(self) -> Iterator[Row | Garbage]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        columns, at = [STATE, TIME, EPISODE, *([ACTION] if self.has else [])], 0
        for done, (file, group) in enumerate(self._places):
            self.share = done / len(self._places)
            try:
                for batch in ParquetFile(file).iter_batches(BATCH, row_groups=[group], columns=columns):
                    table = batch.to_pydict()
                    for k, episode in enumerate(table[EPISODE]):
                        at += 1
                        if episode != self._episode:
                            continue
                        try:
                            yield self._row(at, {name: values[k] for name, values in table.items()})
                        except ValueError as error:
                            yield Garbage(line=at, reason=str(error))
            except (ArrowException, OSError, ValueError) as error:
                raise LogError(f"{file}: cannot be read ({' '.join(str(error).split())[:100]})") from error
        self.share = 1.0

    def _row(self, at: int, row: dict[str, Any]) -> Row:
        size = len(self.joints)
        time_s = row[TIME][0] if isinstance(row[TIME], list) else row[TIME]
        values: dict[str, Any] = {"target": vector(row[ACTION], size, ACTION)[self._action]} if self.has else {}
        if time_s is None or not np.isfinite(time_s):
            raise ValueError(f"{TIME}: got {time_s}, expected a number")
        return Row(
            line=at,
            time_s=float(time_s),
            position=vector(row[STATE], size, STATE),
            state_after_s=0.0,
            command_after_s=0.0,
            **values,
        )
