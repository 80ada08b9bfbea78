"""The fault campaign: plant faults, and count how many `compare` and `bisect` catch.

`models.py` has the models, `planting.py` creates a backend with a fault, `catalogue.py`
lists the faults, `truth.py` measures in float64 which of them have an effect, and
`campaign.py` runs them and writes `docs/fault-campaign.md`. Run it with `nox -s
campaign`.
"""
