"""What the words, the header and the image of a series say about its contrast; `sequences` puts it together.

`words` reads descriptions and file names, `header` acquisition parameters, `image` the voxels. None of them decides
alone: each returns what it saw, with the reason in words.
"""
