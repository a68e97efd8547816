"""Facts: what is edited and what is asked afterwards; sets of them, read from files, checked and fetched."""
