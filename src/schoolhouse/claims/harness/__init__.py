"""What claims are made of, how they are run, and the pages that show them."""
