"""Training core: engines, terms, environment, recurrent PPO. Heavy imports happen in the modules."""

import os

if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    # XLA remarks on every program that it takes from the cache; its errors come as exceptions. JAX sets a level of its
    # own when it is imported, so this comes before it, also for `python -m ksim.train`
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
