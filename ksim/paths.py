"""Where the shipped files are: beside the packages in a checkout, inside ksim in a wheel."""

from __future__ import annotations

from pathlib import Path

from ksim.errors import ConfigError


def shipped_config(name: str) -> Path:
    """A shipped configuration by file name, e.g. `kbot_stand.yaml`.

    Raises:
        ConfigError: there is none of that name; the message lists those there are.
    """
    here = Path(__file__).parent
    folders = [here.parent / "configs", here / "configs"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    known = sorted({p.name for f in folders for p in f.glob("*.yaml") if not p.name.startswith("reality_")})
    raise ConfigError(f"configuration {name!r}: not shipped; there is {', '.join(known) or 'none'}")


def shipped_policy(name: str, suffix: str) -> Path:
    """A shipped policy's file, e.g. `shipped_policy("kbot_stand", ".ckpt")`."""
    return Path(__file__).parent.parent / "robots" / "kbot" / "policies" / f"{name}{suffix}"
