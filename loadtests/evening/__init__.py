"""A real evening at its size: what must hold when thousands come, talk, are cut off and sent elsewhere."""
