"""The type checker that every annotation of filip_jax meets under pytest."""

from beartype import BeartypeConf, beartype

# An int is a float, as PEP 484 has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
