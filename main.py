"""Deploy, remove or start one experiment: `python main.py -c config.yaml -s`."""

from fedkeeper.cli import main

if __name__ == "__main__":
    main()
