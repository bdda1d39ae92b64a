"""Small trainings under the engines' real launchers, which several experiments use."""
