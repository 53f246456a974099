"""aiolog beside what its users would pick instead: one job, each in processes of its own, verified line by line."""
