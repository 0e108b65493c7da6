"""What every test has in common: compiled programs are kept in pytest's cache folder, for child processes too."""

import gc
import os
import signal
import sys

import pytest

# XLA says two kilobytes about each program that it takes from the cache; a child's pipe, read when it has ended, would
# be full before. JAX itself sets another level when it is imported, so this comes first.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Tests and the commands that they start compile more than they compute. The older of the two ways in which XLA (of
# jaxlib 0.9) makes code for a CPU takes half the time of the newer one; fewer of LLVM's passes save as much again, and
# one module of LLVM for a program, in place of up to 32, a little more.
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
gc.set_threshold(50_000, 20, 100)  # what JAX traces is millions of objects, and few of them are cycles
# where it is set, every command that a test starts parses all of our modules anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config: pytest.Config) -> None:
    """JAX reads these when it is imported. Compiling is most of the time of many tests."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))  # type: ignore[union-attr]
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if jax := sys.modules.get("jax"):  # a folder of tests that was named: its conftest.py has imported it already
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # a shell's `make test &` ignores Ctrl-C, and so would the children that tests send it to
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # under nohup; children do not inherit a handler as they would inherit that it is ignored
        signal.signal(signal.SIGHUP, lambda *_: None)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # the same of Ctrl-\


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test first: a worker that took one of them last would end long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
