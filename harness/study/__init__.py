"""A study is engines x settings x workers x repeats: its file, its order, how long it takes, how it is run."""
