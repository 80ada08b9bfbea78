"""Replay: record one call of a function, and run the recorded operations at later calls."""
