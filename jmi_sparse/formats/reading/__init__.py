"""What all formats share: fields, tensors, paths, and which format a path is."""
