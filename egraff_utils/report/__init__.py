"""What do all models and datasets say together? Values of the report pages and figures over all models."""
