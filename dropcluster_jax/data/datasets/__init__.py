"""Kinds of datasets: digits, TFDS, image folders, NumPy archives and random images."""
