"""Teacher or Student in, OnnxModel and Samples out: two graphs with the same integers, proven."""
