"""Benchmarks: `python -m benchmarks` times this library against what users would pick instead."""
