"""Pure functions on arrays: intrinsics, clouds, floor, scale, obstacles."""
