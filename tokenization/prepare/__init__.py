"""`rewarm data prepare`: a restartable job that turns text into shards with several processes."""
