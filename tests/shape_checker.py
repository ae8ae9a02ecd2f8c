"""How the shapes in signatures are checked while tests run."""

from beartype import BeartypeConf, beartype

# As for type checkers, an int will do where a float is wanted.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
