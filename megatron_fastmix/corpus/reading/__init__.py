"""Which files an input means, what they are, and the records in them."""
