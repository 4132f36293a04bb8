"""Grey values: the meaning of a number between 0 (black) and 1 (white) in every image."""

AIR = 0.02
"""Grey value up to which a pixel is air."""
