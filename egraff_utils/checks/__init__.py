"""What may be believed? Audits of data, levels of the reference itself, gates of force fields, and horizons."""
