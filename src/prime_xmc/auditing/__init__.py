"""What is wrong or odd with a data set, what that does to the metrics, and what to do."""
