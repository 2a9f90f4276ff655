"""How the weights of a model come to a machine, once."""
