"""`harness recommend`: which engine and settings for a job, from what was measured, predicted and extrapolated."""
