"""What this machine offers, and what of it an experiment lacks: `fedkeeper doctor`."""
