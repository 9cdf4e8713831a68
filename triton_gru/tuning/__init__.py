"""Finding what is fastest on a GPU by measurement, and keeping it."""
