"""edgekd compiles a teacher network into a proven 2:4-sparse INT8 student for an edge device."""
