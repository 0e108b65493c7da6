"""What every package uses and none owns. Imports nothing of the others."""
