"""The log of commands."""
