"""Data: every loader gives training rows, which are normal, and labelled test rows, as raw values; see `loading`."""
