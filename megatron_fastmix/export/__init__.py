"""What a search leaves behind: the mixture file, and the blends that training tools read."""
