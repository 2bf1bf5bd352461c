"""Benchmarks: what the library's claims rest on. Run one with `python -m benchmarks.NAME`."""
