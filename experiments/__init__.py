"""The paper's studies: what is run (`studies`), how (`training`, `run`), and what it says (`report`)."""
