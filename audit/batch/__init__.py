"""Many audits: what is to be done, by whom, and what counts as found."""
