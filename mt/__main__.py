"""Runs the command line for `python -m mt`, for systems with another program called `mt`."""

from mt.cli import main

if __name__ == "__main__":
    main()
