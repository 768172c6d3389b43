"""Pseudo-labels: a manifest becomes features, features K-means clusters, clusters a unit a frame.

`python -m music_ssl_fairseq.label --help`. In the order data passes through them:

    sample   which frames of which tracks K-means is fitted on
    start    the frames that K-means begins with
    kmeans   fitting, and the unit nearest to a frame
    assign   every track's units, as lines of a .km file
    usage    how the units are used: perplexity, majority share, run length
    stages   the above in order, with progress
    recipe   what made a set of labels (metadata.json), and whether it is finished
"""
