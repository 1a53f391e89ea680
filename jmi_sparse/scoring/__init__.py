"""What scores and examples share: a corpus in batches, dictionaries at their sites, sums over tokens."""
