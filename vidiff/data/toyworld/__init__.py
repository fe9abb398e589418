"""A rendered world of simple things that move, with captions whose truth is known exactly."""
