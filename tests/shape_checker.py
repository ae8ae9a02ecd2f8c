"""The runtime type checker that verifies the shapes in signatures during tests."""

from beartype import BeartypeConf, beartype

# Accepts an int for a float, as static type checkers do.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
