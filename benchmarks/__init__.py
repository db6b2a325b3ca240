"""Measurements: ``python -m benchmarks NAME``. Loopback only; the tests hold but small runs of it."""
