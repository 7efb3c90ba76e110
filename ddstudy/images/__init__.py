"""The image: files, volumes and slices, tiles, input tensors, and how good a reconstruction is."""
