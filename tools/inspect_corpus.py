"""Says what indexed datasets hold."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
