"""OnnxModel x Target -> Engine or Bundle: build an engine, say what it runs, and run it."""
