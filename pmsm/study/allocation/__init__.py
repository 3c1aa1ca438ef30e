"""How many levels each site gets under a budget of energy, spikes or bits."""
