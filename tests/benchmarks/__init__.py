"""What is measured, not asserted: `make bench` runs everything here and writes the tables to docs/benchmarks."""
