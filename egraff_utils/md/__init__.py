"""How does a model move atoms? Calculators, replicas in one batch, rollouts, and their analysis."""
