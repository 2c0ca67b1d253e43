"""What a user can start, one file each."""
