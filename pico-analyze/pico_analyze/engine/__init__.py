"""From a request to work items, to workers, to results (cached), to the table."""
