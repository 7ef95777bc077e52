"""The workshop: data, networks, training and export of bundles."""
