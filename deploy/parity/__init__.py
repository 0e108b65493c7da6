"""How far a run was from the simulation, and its page."""
