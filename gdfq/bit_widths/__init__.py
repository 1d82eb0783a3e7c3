"""How many bits each layer gets within a budget."""
