"""One module per family of checkpoints: each turns a folder into a `Checkpoint` (see `audit.model.loading`)."""
