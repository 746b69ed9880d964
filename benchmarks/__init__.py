"""Runnable claims, each against a peer or a bound: `python -m benchmarks.NAME`."""
