"""Loss functions, and the tasks they are applied to."""
