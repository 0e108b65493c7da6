"""What every test has in common."""

import os

# XLA says two kilobytes about each program that it takes from the cache; a child's pipe, read when it has ended, would
# be full before. JAX itself sets another level when it is imported, so this comes first.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
