"""`python -m mt`: the command line under a name that no other program has."""

from mt.cli import main

if __name__ == "__main__":
    main()
