"""Measurements that anyone can run: `python -m benchmarks.NAME --help`. They print ratios, not times alone."""
