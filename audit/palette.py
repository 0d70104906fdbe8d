"""Colours of every picture: a class looks the same wherever it is drawn."""

from audit.verdict.rule import CLASSES

INK = "#1b1f24"
#: Per class; Okabe and Ito's palette for the colour-blind. Shapes or words always say the same.
COLOURS = dict(zip(map(str, CLASSES), ("#d55e00", "#9b4f96", "#00795b"), strict=True))
