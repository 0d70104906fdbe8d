"""Reference sets: the images that a sample is compared with, embedded and searched exhaustively with FAISS."""
