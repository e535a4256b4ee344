"""Measurements for anyone to run: `python -m benchmarks.NAME --help`. They print ratios, not times alone."""
