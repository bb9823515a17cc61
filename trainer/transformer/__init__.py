"""A small decoder transformer: the model, and its training on the pieces of a stream."""
