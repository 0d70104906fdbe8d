"""From evidence to a verdict: the paper's rule, what a few seeds say of it, and its calibration."""
