"""How are notebooks run? One at a time, as a campaign, in a planned time, and into the book."""
