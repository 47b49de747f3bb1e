"""What may be believed? Audits of data, levels of the reference, gates of force fields, and horizons."""
