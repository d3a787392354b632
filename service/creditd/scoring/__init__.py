"""Use cases: where a request's deadline, its cost and the arithmetic meet. No HTTP, no schema, no torch."""
