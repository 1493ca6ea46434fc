"""The light ranker: LightGBM LambdaRank."""
