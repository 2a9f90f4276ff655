"""How a policy takes effect in a running router: in force, before, on trial, in the shadow."""
