"""What a warehouse holds, in counts and samples."""
