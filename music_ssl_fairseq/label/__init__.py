"""Pseudo-labels: features of a manifest's tracks are clustered, and every frame gets a unit.

`python -m music_ssl_fairseq label --help`. In the order data passes through the modules:

    job                  the settings of one run, checked before any work
    recipe               the settings that decide the centroids
    memory               how many workers and frames fit a stated memory
    label_folder         the folder of labels: metadata.json, and whether it is finished
    fit_stage            `--stage fit`, from manifest to centroids:
      sample               the frames of tracks to fit on
      kmeans               K-means of a sample, in faiss or as fairseq's scripts
      torch_kmeans         the same on a GPU
      kmeans_in_batches    of more frames than fit into memory (`--minibatch N`)
      external_centroids   centroids fitted elsewhere, instead
    assign_stage         `--stage assign`, from centroids to labels, with warnings about the music:
      nearest_centroid     the unit of each frame
      join                 units as a split's files, and how the units are used
    several_label_sets   both stages for several features in one pass

`music_ssl_fairseq.jobs` shares the work, saves and resumes it.
"""
