"""What every verb's command line has in common: the parser, and errors as one line. Standard library only.

The imports here are few, so that Ctrl-C in the first moments finds little that it could interrupt.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

if TYPE_CHECKING:  # imported when a command line is read
    from toolkit.settings import About, Settings

S = TypeVar("S", bound="Settings")

# what to install for a verb that finds one of these modules missing
_EXTRAS = {"train": "train", "eval": "train", "vis": "train", "export": "export", "validate": "export"}
_EXTRAS |= {"twin": "sim", "parity": "sim", "replay": "train", "diff": "train", "average": "train", "view": "view"}
_EXTRA_MODULES = {
    *("equinox", "imageio_ffmpeg", "jax", "jax2onnx", "jaxtyping", "mujoco", "onnx", "optax", "rich", "tensorboardX"),
    *("evdev", "pyarrow", "viser"),
}
# modules that the verb's own extra does not bring
_MODULE_EXTRAS = {"evdev": "gamepad", "pyarrow": "import", "viser": "view"}

# errno -> (what was expected, what to do)
_REMEDIES = {
    errno.ENOENT: ("a path that exists", "check how it is written"),
    errno.EEXIST: ("a folder, or a path that is free", "name another"),
    errno.ENOTDIR: ("a folder", "name another path"),
    errno.EISDIR: ("a file", "name a file in it"),
    errno.EACCES: ("a path that may be read or written", "change its permissions, or name another"),
    errno.EPERM: ("a path that may be read or written", "change its permissions, or name another"),
    errno.EROFS: ("a place that can be written to", "name another path"),
    errno.ENOSPC: ("room to write", "free some, or name a path on another disk"),
    errno.EDQUOT: ("room to write", "free some, or name a path on another disk"),
    errno.EFBIG: ("room to write", "raise the limit on the size of files"),
    errno.EIO: ("a disk that answers", "check it, or name a path on another one"),
    errno.ENAMETOOLONG: ("a shorter name", "name another path"),
    errno.ELOOP: ("links that lead somewhere", "name another path"),
    errno.EMFILE: ("files that can be opened", "close some, or raise the limit (ulimit -n)"),
    errno.ENOMEM: ("memory", "close other programs, or ask for less"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())[:600]}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        """As argparse does it, but help that cannot be written is an error, as any other answer."""
        if message and file is not None and file is sys.stdout:
            file.write(message)
            file.flush()
        else:
            super()._print_message(message, file)


def parser(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends in an example and whose errors are one line."""
    return _Parser(
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class Option(NamedTuple):
    """Marks a field of a settings class as an option of a command: `Annotated[bool, Option("print JSON")] = False`.

    Attributes:
        help: what it is; the default is added where it says anything.
        metavar: what stands for its value in the help.
        short: a short form, e.g. "-o".
        flag: its long form; by default the field's name with dashes.
        positional: given by its place, without a flag.
        group: of options with one group's name at most one may be given.
        bare: its value where the flag is given without one; None where it needs one.
        read: makes the field's value of the texts of an option that may be repeated.
        many: takes several values after one flag, or in one place.
    """

    help: str
    metavar: str = ""
    short: str = ""
    flag: str = ""
    positional: bool = False
    group: str = ""
    read: Callable[[list[str]], Any] | None = None
    bare: Any = None
    many: bool = False

    def name(self, field: str) -> str:
        """What the command line calls a field."""
        return field if self.positional else self.flag or f"--{field.replace('_', '-')}"


def _argument(name: str, about: About, option: Option) -> tuple[list[str], dict[str, Any]]:
    """How argparse is told of an option. Absent ones stay absent: the defaults are the class's."""
    bare = about.bare
    origin, args = typing.get_origin(bare), typing.get_args(bare)
    words = option.help
    said = about.default not in (None, "", False, (), {}) and bare is not bool and "default" not in words
    words += f" (default: {about.default})" if said else ""
    how: dict[str, Any] = {"help": words.replace("%", "%%"), "default": argparse.SUPPRESS}
    if option.metavar:
        how["metavar"] = option.metavar
    if option.bare is not None:
        how |= {"nargs": "?", "const": option.bare}
    if bare is bool:
        how["action"] = argparse.BooleanOptionalAction if about.default else "store_true"
    elif origin is typing.Literal:
        how["choices"] = args
    elif origin in (tuple, dict):
        how["action"] = "append"
    elif bare in (int, float):
        how["type"] = bare
    if option.many:
        how |= {"nargs": "+", "action": "extend"}
    if option.positional:
        if not about.required:
            how["nargs"] = "?"
        return [name], how
    how |= {"dest": name, "required": about.required}
    return [*filter(None, [option.short]), option.name(name)], how


def options(cls: type[S], argv: Sequence[str] | None, prog: str, description: str, example: str) -> S:
    """A command's options: the fields of a settings class that are marked as `Option`, read from its arguments.

    Words that are none end the process with one line and status 2, as does `--help` with the help and 0.

    Args:
        cls: the class.
        argv: the arguments; None takes the process's.
        prog: the command.
        description: what it does.
        example: a line to copy.

    Raises:
        SettingsError: a value is out of its bounds, named by its flag.
    """
    from toolkit.errors import SettingsError
    from toolkit.settings import fields

    parse = parser(prog, description, example)
    groups: dict[str, Any] = {}
    marked: dict[str, Option] = {}
    for name, about in fields(cls).items():
        option = about.marker(Option)
        if option is None:
            continue
        marked[name] = option
        add = parse
        if option.group:
            add = groups.get(option.group) or parse.add_mutually_exclusive_group()
            groups[option.group] = add
        flags, how = _argument(name, about, option)
        add.add_argument(*flags, **how)
    given = vars(parse.parse_args(argv))
    for name, option in marked.items():
        if option.read is not None and name in given:
            given[name] = option.read(given[name])
    try:
        return cls(**given)
    except SettingsError as error:
        first = error.key.split("[")[0].split(".")[0]
        if first not in marked:
            raise
        key = marked[first].name(first) + error.key[len(first) :]
        raise cls.error(error.problem, key=key) from None


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop at once.

    Attributes:
        signum: its number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def stop(number: int, frame: Any) -> None:
    """Handler of a signal: raise `Interrupted`, or send the signal anew in a moment where that would be lost.

    Python prints what is raised in a finaliser or in a callback of its garbage collector, and goes on.
    """
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_xla_gc_callback"):
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        frame = frame.f_back
    raise Interrupted(number)


# what a person, a system that shuts down and a terminal that closes send; there is no SIGHUP on Windows
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], Any], *before: Any) -> Iterator[None]:
    """Within it those signals have a handler whose own is one of `before`. Others' handlers stay."""
    ours = {}
    if threading.current_thread() is threading.main_thread():
        ours = {n: signal.getsignal(n) for n in _SIGNALS if signal.getsignal(n) in before}
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in ours.items():
            signal.signal(number, own)


@contextlib.contextmanager
def importing(verb: str) -> Iterator[None]:
    """While modules are imported nothing is at stake yet: a signal ends the process with its one line.

    An exception would not do: whoever imports may catch it, or answer with one of its own, as numpy does.
    """

    def leave(number: int, frame: object) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"ksim {verb}: interrupted\n".encode())
        os._exit(128 + number)

    with _handled(leave, signal.default_int_handler, stop):
        yield


def fill_streams() -> None:
    """Give the process the standard streams that it was started without: nothing in, and out to nowhere.

    Also their numbers: the next file opened would have one of them, and whoever writes to standard error by number,
    as libraries in C do, would write into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    _take_any_text(sys.stdout)


def _take_any_text(stream: Any) -> None:
    """Have a stream write what its encoding lacks by its number: a file's name is no reason for a traceback."""
    told = str(getattr(stream, "encoding", "")).lower().replace("-", "")
    if hasattr(stream, "reconfigure") and (told, stream.errors) != ("utf8", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more; the exit status still tells
        print(text, file=sys.stderr, flush=True)


def drop_stdout() -> None:
    """Where standard output cannot be written, send what is left of it nowhere, or Python would tell of it at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def describe(error: OSError) -> str:
    """What the system refused, what was expected and what to do, in one line."""
    what = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    name = error.filename if isinstance(error.filename, str) else ""
    text = f"{name}: {what}" if name else what
    expected, remedy = _REMEDIES.get(error.errno or 0, ("", ""))
    return f"{text}; expected {expected}; {remedy}" if expected else text


def _interrupted(error: BaseException | None) -> KeyboardInterrupt | None:
    """The signal of which somebody made an error, as modules in C do while they are imported."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return next((e for e in seen if isinstance(e, KeyboardInterrupt)), None)


def _status(error: KeyboardInterrupt) -> int:
    return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)


def one_line(verb: str, error: Exception) -> str | None:
    """What a person reads about an error; None for a mistake of ours, whose traceback we need."""
    # an error of the toolkit can only be raised by who has imported it; an import here could be interrupted
    ours = sys.modules.get("toolkit.errors")
    if ours is not None and isinstance(error, ours.ToolkitError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").split(".")[0]
        if name not in _EXTRA_MODULES:
            return None
        extra = _MODULE_EXTRAS.get(name) or _EXTRAS.get(verb, "all")
        return f"needs {name}; install it with: pip install 'ksim2real[{extra}]'"
    if isinstance(error, OSError):
        return describe(error)
    # pybind11 and JAX raise their own kinds
    if isinstance(error, MemoryError) or any(word in str(error) for word in ("bad_alloc", "RESOURCE_EXHAUSTED")):
        return "not enough memory; expected room for what was asked; ask for less, or close other programs"
    return None


def run_verb(verb: str, function: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a verb; its errors become one line on stderr and exit status 1, a signal's 128 and its number."""
    fill_streams()
    who = f"ksim {verb}".rstrip()
    try:
        with _handled(stop, signal.SIG_DFL, signal.default_int_handler):
            status = function(argv)
        sys.stdout.flush()  # here an answer that cannot be written is one line; at exit it is not
        return status
    except BrokenPipeError:
        drop_stdout()
    except KeyboardInterrupt as error:
        _say(f"{who}: interrupted")
        return _status(error)
    except Exception as error:
        stopped = _interrupted(error) if isinstance(error, ImportError) else None
        if stopped is not None:
            _say(f"{who}: interrupted")
            return _status(stopped)
        text = one_line(verb, error)
        if text is None:
            raise
        drop_stdout()
        _say(f"{who}: {' '.join(text.split())}")
    return 1
