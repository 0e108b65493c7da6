"""Logs of other programs, made into the log that `ksim run` writes."""
