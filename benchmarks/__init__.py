"""Compare the speed and memory of this library with others: `python -m benchmarks`."""
