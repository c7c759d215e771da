"""What people searched and what they did with it: log, click model, comparison."""
