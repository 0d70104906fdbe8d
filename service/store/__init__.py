"""Batches, what they consist of, and every result: in SQLite or PostgreSQL."""
