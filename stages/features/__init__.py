"""Features and serving state: one implementation for training and for serving.

config.py            FeatureConfig, SamplingConfig
state.py             FunnelState: everything that advances by events
state_kernels.py     its arrays, and what an event changes in them, in compiled code
counters.py          exponentially decayed counts
user_rows.py         growing rows of touched items over a memory-mapped base
covisitation.py      item-to-item links of neighbouring touches
trending.py          touches within short windows, by segment
state_files.py       the files of a state
history.py           inputs of the user tower
replay.py            one request after the other, each with the state before it
reading.py           what the state says of many requests (reading_kernels.py: in compiled code)
ranking.py           the ranking features of one request (feature_kernels.py: in compiled code)
feature_blocks.py    the ranking features of many requests
sampling.py          which requests and candidates the rankers learn from
build.py             the ``build_examples`` step
"""
