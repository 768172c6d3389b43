"""A map of a folder of songs as one page: `python -m music_ssl_fairseq map FOLDER --upstream X`.

`embedding` computes and caches one vector per song, `song_page` writes the page.
"""
