"""Documents that operators write: how they are spelt, read, checked, compared, told to editors."""
