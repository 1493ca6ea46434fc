"""Features and serving state: one implementation for training and for serving.

config.py         FeatureConfig
counters.py       exponentially decayed counts
keyed_rows.py     growing rows over a memory-mapped base
covisitation.py   item-to-item links of neighbouring touches
trending.py       touches within short windows, by segment
state.py          FunnelState: everything that advances by events
history.py        inputs of the user tower
replay.py         requests in time order, each with the state before it
ranking.py        the ranking features
build.py          the ``build_examples`` step
"""
