"""Colours of every picture: a class looks the same wherever it is drawn."""

INK = "#1b1f24"
#: By class; Okabe and Ito's palette for the colour-blind. Shapes or words always say the same.
COLOURS = {"memorized": "#d55e00", "spurious": "#9b4f96", "generalized": "#00795b"}
