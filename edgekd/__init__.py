"""edgekd: a compiler from a teacher network to a proven 2:4-sparse INT8 student on an edge device."""
