"""The five papers: their rows, what they take, and our numbers beside theirs."""
