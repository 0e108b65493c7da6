"""The robot side: run a policy over KOS, record it, compare it with the simulation. Never imports jax or ksim."""
