"""Shipped recipes, and the data they read; everything here works without a network."""
