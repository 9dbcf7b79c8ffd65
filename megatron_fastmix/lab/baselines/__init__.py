"""Other published ways to choose a mixture, on the search's own proxy and data."""
