"""The models' arithmetic, faster: other layouts, compiled functions, CUDA graphs, Triton kernels.

Results equal the plain operations of `modules` to rounding. Nothing here knows the models:
functions take tensors, numbers, and layers with torch's attribute names.
"""
