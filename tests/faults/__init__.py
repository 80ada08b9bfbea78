"""The fault campaign: faults planted in one backend, and whether `compare` and `bisect` see them.

`models.py` has what is trained, `planting.py` a backend with a fault, `catalogue.py` the faults,
`truth.py` says by float64 which of them have an effect at all, and `campaign.py` runs them and
writes `docs/fault-campaign.md`. Run it with `nox -s campaign`.
"""
