"""What the loop needs of a robot: its state, the safety layer, and the KOS boundary."""
