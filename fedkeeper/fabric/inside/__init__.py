"""What runs inside zygotes and workers. Standard library only, and nothing of the package fedkeeper: the zips
of functions carry their own `fedkeeper.runtime`, which must be the one that they import."""
