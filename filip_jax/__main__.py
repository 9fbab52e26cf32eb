"""`python -m filip_jax` is the command `filip`."""

from filip_jax.cli import entry

if __name__ == "__main__":
    entry()
