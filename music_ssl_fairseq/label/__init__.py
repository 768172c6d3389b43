"""Pseudo-labels: a manifest becomes features, features K-means clusters, clusters a unit a frame.

`python -m music_ssl_fairseq.label --help`. In the order data passes through them:

    sample       which frames of which tracks K-means is fitted on
    start        the frames that K-means begins with
    kmeans       fitting, with `reseat`; `backends` and `torch_kmeans` are what it computes with
    minibatch    fitting more frames than fit, in `batches`
    given        centroids from elsewhere, instead
    nearest      the unit nearest to a frame
    assign       every track's units
    join         the units as a split's files
    usage        how the units are used: perplexity, majority share, run length
    report       a page about them, from `evidence`, `information` and `pictures`

How the work is done, whatever it is:

    shards       which part of it is whose
    blocks       a job over blocks of tracks, saved one by one
    work         where blocks are until all is there
    parallel     worker processes
    pieces       features of many pieces of audio, in a worker
    memory       how much of what fits a stated memory
    recipe       what made a set of labels (metadata.json), and whether it is finished
    stages       the above in order, with progress
"""
