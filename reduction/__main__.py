"""`python -m reduction COMMAND`."""

import sys

from reduction.cost import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
