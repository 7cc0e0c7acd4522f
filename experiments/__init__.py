"""What measures the model and the judge; each a command, `python -m experiments.NAME --help`."""
