import numpy as np

from music_ssl_fairseq.jobs.blocks import BlockJob
from music_ssl_fairseq.jobs.checkpoint_dir import CheckpointDir
from music_ssl_fairseq.jobs.pool import WorkerPool


def test_a_file_replaced_while_it_is_read_is_read_again(tmp_path):
    found = ["old"]

    def item(track: int) -> int:
        found[0] = "new"
        return track

    done = CheckpointDir(tmp_path)
    job = BlockJob("x", "x", np.array([16000]), item, lambda tracks: found[0])
    job.run(done, [0], lambda items: [np.zeros(1) for _ in items], WorkerPool(0))
    assert done.load_block("x", 0).source == "old"
    done.remove_outdated("x", 1, lambda number: "new")
    assert done.missing("x", 1) == [0]
