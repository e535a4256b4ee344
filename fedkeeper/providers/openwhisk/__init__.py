"""Apache OpenWhisk."""
