"""Programs of others, pointed at the embedded fabric."""
