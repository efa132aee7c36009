"""The shipped suites, one file per path: what `pytest --parity` runs. Installed as `parity.suites`."""
