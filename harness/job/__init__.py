"""What is asked: the declaration of a job, and its options on the command line."""
