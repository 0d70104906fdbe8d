"""A checkpoint seen as a denoiser."""
