"""Pages for people, with what they say for machines and for pull requests: of one run, and of two compared."""
