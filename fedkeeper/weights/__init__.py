"""The keeper's view of the weights store."""
