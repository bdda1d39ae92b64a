"""How ranks and their supervisor speak: failure marks, the console, turns, last words."""
