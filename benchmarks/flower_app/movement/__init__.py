"""The app of benchmarks.flower: it runs in an environment that has flwr."""
