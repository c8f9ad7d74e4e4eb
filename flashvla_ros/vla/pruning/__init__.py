"""Which visual tokens the decoder keeps."""
