"""Features and serving state: one implementation for training and for serving.

config.py            FeatureConfig, SamplingConfig
state.py             FunnelState: everything that advances by events
state_arrays.py      its arrays, as compiled functions take them
state_kernels.py     what an event changes in them, in compiled code
event_rules.py       which events a state takes, and what they count as
counters.py          exponentially decayed counts
user_rows.py         growing rows of touched items over a memory-mapped base (row_kernels.py: in compiled code)
covisitation.py      item-to-item links of neighbouring touches (link_kernels.py: in compiled code)
trending.py          touches within short windows, by segment (trending_kernels.py: in compiled code)
state_files.py       the files of a state
history.py           inputs of the user tower
reading.py           what the state says of many requests (reading_kernels.py: in compiled code)
ranking.py           the ranking features of one request (feature_*.py: in compiled code)
feature_blocks.py    the ranking features of many requests
sampling.py          which requests and candidates the rankers learn from
build.py             the ``build_examples`` step
"""
