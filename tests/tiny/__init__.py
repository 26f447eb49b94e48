"""Networks and data small enough that a whole stage runs in a second: importable by a recipe."""
