"""What may be believed? Audits of data, levels of a perfect model, gates of force fields, and horizons."""
