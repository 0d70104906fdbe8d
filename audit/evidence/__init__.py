"""One module per kind of measurement; formula and source at its top."""
