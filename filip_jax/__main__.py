"""`python -m filip_jax` is the command `filip`."""

import sys

from filip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
