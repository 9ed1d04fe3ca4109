"""One encoder on several processes: heads, layers or the sequence split over a device mesh of ``torch.distributed``.

``zoo.parallel.tensor`` splits heads and feed-forward, ``zoo.parallel.pipeline`` layers, ``zoo.parallel.context`` the
sequence. Each takes an ``Encoder`` that every process has built alike, and a mesh of one dimension.
"""
