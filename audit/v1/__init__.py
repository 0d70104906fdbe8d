"""Wire types, generated from proto/audit/v1 by `make proto`."""
