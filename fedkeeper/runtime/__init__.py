"""What ships inside every function's zip."""
