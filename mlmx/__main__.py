"""Run the command line as ``python -m mlmx``."""

from mlmx.cli import main

if __name__ == "__main__":
    main()
