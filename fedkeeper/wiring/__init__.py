"""The composition root: a config becomes objects that know each other, opened and closed in one place."""
