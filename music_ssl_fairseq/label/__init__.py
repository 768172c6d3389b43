"""Pseudo-labels: features of a manifest's tracks are clustered, and every frame gets a unit.

`python -m music_ssl_fairseq label --help`. In the order data passes through the modules:

    job                  the settings of one run, checked before any work
    recipe               the settings that decide the centroids
    memory               how many workers and frames fit a stated memory
    folder               the folder of labels: metadata.json, and whether it is finished
    sample               frames of tracks to fit K-means on
    kmeans               fitting in faiss; `torch_kmeans` on a GPU
    minibatch            fitting more frames than fit into memory
    external_centroids   centroids fitted elsewhere, instead
    fitting              the stage that these make up
    assign               the nearest centroid of each frame
    join                 units as a split's files, and how the units are used
    labelling            the stage that these make up, and warnings about the music
    together             both stages for several features in one pass

`music_ssl_fairseq.jobs` shares the work, saves and resumes it.
"""
