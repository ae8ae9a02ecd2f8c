"""The paper's studies: definitions (`studies`), runner (`run`, `measure`), and report (`report`)."""
