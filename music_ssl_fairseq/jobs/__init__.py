"""The engine for long work. It knows no features, labels or models.

pool             worker processes that apply a job to items, results in order
read_ahead       threads that do the same within one process
blocks           a job over blocks of tracks, each saved as soon as it is complete
checkpoint_dir   the folder of these blocks until all are there
shards           which blocks belong to which process of a shared run
"""
