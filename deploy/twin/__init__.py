"""A KOS server over a simulated robot in a reality of its own. The only rooms that need MuJoCo: twin and parity."""
