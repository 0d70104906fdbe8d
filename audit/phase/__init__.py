"""The from-scratch trainer: data, captions, networks and the ladder of training-set sizes."""
