"""Images and regions that anybody can make again from their names, for features of texture.

NumPy's RandomState has a frozen stream, so every NumPy version gives the same numbers. Used by make_radiomics.py and by
the tests that compare with its output; needs NumPy alone.
"""

import zlib

import numpy as np

CASES = (  # name of the image, height, width, name of the region
    ("smooth", 40, 44, "all"),
    ("rough", 37, 41, "all"),
    ("smooth", 48, 30, "disc"),
    ("rough", 33, 52, "corner"),
    ("steps", 36, 36, "all"),
    ("steps", 41, 34, "two"),
)
"""Even and odd sizes, whole images and regions: round, at the border, in two parts."""

SETS = {"few": (30, 26, 34), "many": (430, 415, 18), "even": (30, 26, 32)}
"""Images of the first and of the second set, and their side: fewer than there are features, and more. Half of an even
side is odd but for the last, where the means of wavelets are 0 but for rounding."""


def image(name, height, width, number=0):
    """Grey values [height, width], uint8."""
    random = np.random.RandomState(zlib.crc32(f"{name} {height} {width} {number}".encode()))
    noise = random.random_sample((height + 8, width + 8))
    if name == "rough":
        values = noise[:height, :width]
    else:
        sums = np.cumsum(np.cumsum(np.pad(noise, ((1, 0), (1, 0))), 0), 1)
        blurred = (sums[5:, 5:] - sums[:-5, 5:] - sums[5:, :-5] + sums[:-5, :-5])[:height, :width] / 25
        values = (blurred - blurred.min()) / (blurred.max() - blurred.min())
        if name == "steps":
            values = np.floor(values * 5) / 5
    return np.round(10 + values * 220).astype(np.uint8)


def region(name, height, width):
    """A region [height, width] bool."""
    rows, columns = np.mgrid[:height, :width]
    disc = ((rows - height * 0.45) / (height * 0.3)) ** 2 + ((columns - width * 0.55) / (width * 0.35)) ** 2 < 1
    return {
        "all": np.ones((height, width), bool),
        "disc": disc,
        "corner": rows + columns < (height + width) * 0.4,
        "two": disc & (abs(columns - width * 0.55) > 3),
    }[name]


def sets(name):
    """Two lists of images that differ a little in texture and contrast."""
    first, second, side = SETS[name]
    ours = [image("smooth", side, side, number) for number in range(first)]
    theirs = []
    for number in range(second):
        smooth, rough = image("smooth", side, side, 10_000 + number), image("rough", side, side, 10_000 + number)
        theirs.append(np.round(0.8 * smooth + 0.1 * rough + 12).astype(np.uint8))
    return ours, theirs
