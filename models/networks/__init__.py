"""What has parameters: the towers, the token vectors they start from, and the cross-scorer."""
