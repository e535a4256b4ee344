"""`python -m fedkeeper`: as the console script."""

from fedkeeper.cli import fedkeeper

if __name__ == "__main__":
    fedkeeper(prog_name="fedkeeper")
