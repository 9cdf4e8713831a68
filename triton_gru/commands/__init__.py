"""The commands of ``triton-gru``, one file each."""
