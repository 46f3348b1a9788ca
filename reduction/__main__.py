"""`python -m reduction COMMAND`."""

import sys

from reduction.console import run_command
from reduction.cost import main

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
